"""Nearest neighbours in the own camera and in the other cameras, both from one exact search.

The images are sorted by camera, so that a camera is a range of columns. A block of rows is multiplied with all columns
in one matrix product; the largest products inside and outside of its camera give two lists over disjoint columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ._candidates import Found, Progress, Scan
from ._largest import Lists
from .neighbors import checked_rows
from .screen import Piece, Screen, candidates_for, largest_products, precisions
from .symmetric import SymmetricProducts, suits

_LEAST = 30  # images of the smallest camera, in multiples of a list's length: of few, some similarities are negative


@torch.no_grad()
def camera_neighbors(
    features: Tensor | np.ndarray,
    cameras: Tensor | np.ndarray,
    k_intra: int,
    k_inter: int,
    *,
    chunk_size: int = 1024,
    device: torch.device | str | None = None,
    progress: Progress = iter,
) -> tuple[Tensor, Tensor]:
    """List the nearest images of each image twice: with those of its own camera first, and with those of others first.

    The own camera's list starts with the image itself. A list that runs out of images of its kind continues with the
    other kind, nearest first, and the image itself before the others of its camera. The lists are as exact as those of
    ``k_nearest``, and order equal similarities in the same way.

    Args:
        features: (N, D) floating point of any row norm but zero; compared by direction.
        cameras: (N,) integers, compared for equality only.
        k_intra: length of the first list, in [1, N].
        k_inter: length of the second list, in [1, N].
        chunk_size: queries per block.
        device: where to compute; by default where ``features`` lives.
        progress: wraps the sequence of query blocks, for instance ``tqdm``; silent by default.

    Returns:
        (N, k_intra) and (N, k_inter) int64, on the CPU.

    Raises:
        ValueError: for arguments that do not fit each other or are out of range.

    Exact search takes time O(N^2 D). Memory in addition to ``features``: a copy in the precision of the product, a
    block of ``chunk_size`` x 16384 similarities, and lists of candidates as in ``k_nearest``.
    """
    rows, scale = checked_rows(features, device)
    groups = _Groups.of(cameras, len(rows), rows.device)
    for name, k in (("k_intra", k_intra), ("k_inter", k_inter)):
        if not 1 <= k <= len(rows):
            raise ValueError(f"{name} must lie in [1, {len(rows)}], the number of images, got {k}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    # A list that runs out continues with the other list, which may have to be longer for that.
    smallest, largest = int(groups.sizes.min()), int(groups.sizes.max())
    both = max(k_intra, k_inter)
    lengths = both if k_inter > len(rows) - largest else k_intra, both if k_intra > smallest else k_inter

    available = precisions(rows.device)
    searches: list[Callable[..., _CameraScreen | _SymmetricCameraScreen | _CameraScan]]
    searches = [*(partial(_CameraScreen, precision) for precision in available), _CameraScan]
    blocks = groups.blocks(chunk_size)
    if suits(rows, torch.cat(blocks), *lengths) and smallest >= _LEAST * lengths[0]:
        searches[0] = partial(_SymmetricCameraScreen, available[0])
    intra, inter = (groups.order.new_zeros(len(rows), k) for k in lengths)
    while blocks:
        search = searches.pop(0)(rows, scale, groups, *lengths)
        uncertain = []
        for positions in progress(blocks):
            (_, near, certain), (_, far, also) = search(positions)
            queries = groups.order[positions]
            intra[queries], inter[queries] = near, far
            uncertain.append(positions[~(certain & also)])
        blocks = [block for block in uncertain if len(block)]
    intra, inter = intra.cpu(), inter.cpu()
    own = groups.sizes[groups.codes].cpu()
    return _continued(intra, own, inter, k_intra), _continued(inter, len(rows) - own, intra, k_inter)


@dataclass(frozen=True)
class _Groups:
    """Which images share a camera. ``order`` lists the images sorted by camera; a position is an index into it.

    Attributes:
        codes: (N,) int64, the camera of each image, in 0..C-1.
        order: (N,) int64.
        sizes, starts: (C,) int64, the number of images of each camera and the position of the first.
    """

    codes: Tensor
    order: Tensor
    sizes: Tensor
    starts: Tensor

    @classmethod
    def of(cls, cameras: Tensor | np.ndarray, num_rows: int, device: torch.device) -> _Groups:
        cameras = torch.as_tensor(cameras, device=device)
        if cameras.shape != (num_rows,) or cameras.is_floating_point():
            raise ValueError(
                f"cameras must be ({num_rows},) integers, one for each feature row, got {cameras.dtype} "
                f"{tuple(cameras.shape)}"
            )
        codes, sizes = cameras.unique(return_inverse=True, return_counts=True)[1:]
        return cls(codes, codes.argsort(stable=True), sizes, sizes.cumsum(0) - sizes)

    def blocks(self, chunk_size: int) -> list[Tensor]:
        """All positions in blocks of up to ``chunk_size``: parts of one camera, or several whole cameras."""
        borders = [0]
        for start, size in zip(self.starts.tolist(), self.sizes.tolist(), strict=True):
            if start + size - borders[-1] > chunk_size:
                parts = -(-size // chunk_size)  # of equal size, because small blocks waste time
                borders += [start + size * part // parts for part in range(parts)]
                if parts > 1:
                    borders.append(start + size)
        positions = torch.arange(len(self.order), device=self.order.device)
        return [block for block in positions.tensor_split(borders[1:]) if len(block)]


class _CameraScreen:
    """Finds both lists by ``Screen``; called with a block of positions of one or several cameras."""

    def __init__(
        self, precision: torch.dtype, rows: Tensor, scale: Tensor, groups: _Groups, k_intra: int, k_inter: int
    ) -> None:
        self.screen = Screen(precision, rows, scale, max(k_intra, k_inter), groups.order)
        self.groups, self.k_intra, self.k_inter = groups, k_intra, k_inter

    def __call__(self, positions: Tensor) -> tuple[Found, Found]:
        groups, num_rows = self.groups, len(self.groups.order)
        queries = groups.order[positions]
        own = groups.codes[queries]
        # The columns of the cameras of this block.
        first, last = int(groups.starts[own[0]]), int(groups.starts[own[-1]] + groups.sizes[own[-1]])
        same = None
        if own[0] != own[-1]:
            same = own[:, None] == groups.codes[groups.order[first:last]]
        inside: list[Piece] = [(first, last, same)]
        outside: list[Piece] = [(0, first, None), (last, num_rows, None)]
        if same is not None:
            outside.append((first, last, ~same))
        available = groups.sizes[own]
        return (
            self._settle(positions, queries, self.k_intra, inside, available, positions),
            self._settle(positions, queries, self.k_inter, outside, num_rows - available, None),
        )

    def _settle(
        self,
        positions: Tensor,
        queries: Tensor,
        k: int,
        pieces: Sequence[Piece],
        available: Tensor,
        own: Tensor | None,
    ) -> Found:
        rounded = self.screen.rounded
        columns = sum(last - first for first, last, _ in pieces)
        if not columns:
            filler = queries.new_zeros(len(queries), k)
            return filler, filler, torch.ones_like(queries, dtype=torch.bool)
        count = min(candidates_for(k), columns)
        scores, candidates = largest_products(rounded[positions], rounded, count, own, pieces)
        return self.screen.settle(queries, scores, self.groups.order[candidates], k, available)


class _SymmetricCameraScreen:
    """Finds both lists by ``SymmetricProducts``; called with all blocks of positions in order."""

    def __init__(
        self, precision: torch.dtype, rows: Tensor, scale: Tensor, groups: _Groups, k_intra: int, k_inter: int
    ) -> None:
        self.screen = Screen(precision, rows, scale, max(k_intra, k_inter), groups.order)
        own = groups.codes[groups.order]
        begins, ends = groups.starts[own], (groups.starts + groups.sizes)[own]
        kept = candidates_for(k_intra), candidates_for(k_inter)
        self.products = SymmetricProducts(self.screen.rounded, begins, ends, kept)
        self.groups, self.k_intra, self.k_inter = groups, k_intra, k_inter

    def __call__(self, positions: Tensor) -> tuple[Found, Found]:
        rows = self.products.advance(positions)
        available = self.groups.sizes[self.groups.codes[self.groups.order[positions]]]
        return (
            self._settle(rows, self.products.inside, self.k_intra, available, own=True),
            self._settle(rows, self.products.outside, self.k_inter, len(self.groups.order) - available, own=False),
        )

    def _settle(self, rows: slice, lists: Lists, k: int, available: Tensor, *, own: bool) -> Found:
        scores, columns, bounds = lists.read(rows, self.screen.rounded.dtype, own)
        order = self.groups.order
        return self.screen.settle(order[rows], scores, order[columns], k, available, bounds)


class _CameraScan:
    """Finds both lists by ``Scan``."""

    def __init__(self, rows: Tensor, scale: Tensor, groups: _Groups, k_intra: int, k_inter: int) -> None:
        self.order = groups.order
        self.scans = (
            Scan(rows, scale, k_intra, groups.codes, same=True),
            Scan(rows, scale, k_inter, groups.codes, same=False),
        )

    def __call__(self, positions: Tensor) -> tuple[Found, Found]:
        queries = self.order[positions]
        return self.scans[0](queries), self.scans[1](queries)


def _continued(lists: Tensor, lengths: Tensor, others: Tensor, k: int) -> Tensor:
    """The first ``lengths`` (N,) entries of each list, then the other list; ``k`` entries in all."""
    place = torch.arange(k)
    beyond = place - lengths[:, None]
    return torch.where(
        beyond < 0,
        lists.gather(1, place.clamp(max=lists.shape[1] - 1).expand(len(lists), -1)),
        others.gather(1, beyond.clamp(min=0, max=others.shape[1] - 1)),
    )
