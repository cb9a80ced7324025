"""Exact nearest neighbours under cosine similarity.

A matrix product, in bfloat16 where that is faster, selects a few candidates for each row; their similarities in float64
decide. Where all rows are searched on a CPU, a product of two rows serves both. An error bound shows which rows are
thereby settled; the others continue with more candidates in the next precision, and the last ones, which have more near
copies than that, one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ._candidates import Progress, Scan, Search, search_in_turn
from .approximate import ApproximateSearch
from .screen import Screen, precisions
from .symmetric import SymmetricScreen, suits

METHODS = ("exact", "cells")

_CROWD = 1024  # candidates for rows that have more near copies than the usual number of candidates
_NORMED = 256  # rows per block for which norms are computed


@torch.no_grad()
def k_nearest(
    features: Tensor | np.ndarray,
    k: int,
    *,
    chunk_size: int = 1024,
    device: torch.device | str | None = None,
    method: str = "exact",
    queries: slice = slice(None),
    gather: Callable[[Tensor], Tensor] | None = None,
    progress: Progress = iter,
) -> tuple[Tensor, Tensor]:
    """Find the ``k`` most similar rows of every row, the row itself first.

    Exact lists are those of float64 arithmetic, whatever the precision in which the machine multiplies fastest. They
    depend on the features only, not on ``chunk_size``, ``queries`` or the number of threads. Rows of equal similarity
    are listed by ascending index, and those of lower index are kept.

    Args:
        features: (N, D) floating point of any precision and any row norm but zero; compared by direction.
        k: neighbours per row, including the row itself; in [1, N].
        chunk_size: queries per block.
        device: where to compute; by default where ``features`` lives.
        method: "exact"; or "cells", which misses a few neighbours and saves time on large sets (see
            ``ApproximateSearch``).
        queries: the rows to search for, by default all. Several processes may each take a slice of the same features.
        gather: for "cells" in several processes, whose consecutive slices together cover all rows. It is called in all
            of them at once, and joins a CPU tensor of each process, one row per query, into one with N rows. Without
            it, each process does the work of all of them before its own queries.
        progress: wraps the sequence of query blocks, for instance ``tqdm``; silent by default. It wraps another
            sequence if rows are left for the next precision.

    Returns:
        ``similarities`` (Q, k) in [-1, 1], descending after the first column, and ``indices`` (Q, k) int64,
        for the Q selected rows, on the device of ``features``.

    Raises:
        ValueError: for a wrong shape or type, ``k`` or ``chunk_size`` out of range, an unknown ``method``, or rows that
            have no direction.

    Exact search takes time O(Q N D). Memory in addition to ``features``: a copy in the precision of the product and a
    block of ``chunk_size`` x 16384 similarities; for features in half precision also a copy in float32. If all rows are
    searched on a CPU, and they are 4,096 to 500,000, half of the products and lists of candidates, about 1.5 KB a row
    for ``k`` = 30, take the place of these.
    """
    home = features.device if isinstance(features, Tensor) else torch.device("cpu")
    rows, scale = checked_rows(features, device)
    num_rows = len(rows)
    if not 1 <= k <= num_rows:
        raise ValueError(f"k must lie in [1, {num_rows}], the number of feature rows, got {k}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")

    selected = torch.arange(num_rows, device=rows.device)[queries]
    available = precisions(rows.device)
    searches: list[Callable[[], Search]]
    symmetric = method == "exact" and suits(rows, selected, k)
    screen = SymmetricScreen if symmetric else Screen
    searches = [partial(screen, fastest, rows, scale, k) for fastest in available[:1]]
    searches += [partial(Screen, finest, rows, scale, k, candidates=_CROWD) for finest in available[-1:]]
    searches.append(partial(Scan, rows, scale, k))
    if method == "cells":
        mine = selected if gather else torch.arange(num_rows, device=rows.device)
        cells = ApproximateSearch(rows, scale, k, mine, gather or _alone, progress=progress)
        searches.insert(0, lambda: cells)
    similarities, indices = search_in_turn(
        searches, selected, k, dtype=rows.dtype, chunk_size=chunk_size, progress=progress
    )
    return similarities.clamp_(-1, 1).to(home), indices.to(home)


def _alone(part: Tensor) -> Tensor:
    return part


def checked_rows(features: Tensor | np.ndarray, device: torch.device | str | None) -> tuple[Tensor, Tensor]:
    """``features`` on ``device``, kept in float64 or else in float32, and one over each norm (N,) float64."""
    if not isinstance(features, Tensor):
        features = torch.as_tensor(np.require(features, requirements="W"))
    tensor = features.detach()
    if tensor.dim() != 2 or not tensor.is_floating_point():
        raise ValueError(f"features must be a floating point (N, D) matrix, got {tensor.dtype} {tuple(tensor.shape)}")
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    rows = tensor.to(device=device, dtype=dtype).contiguous()
    norms = rows.new_empty(len(rows), dtype=torch.float64)
    for block, out in zip(rows.split(_NORMED), norms.split(_NORMED), strict=True):
        torch.linalg.vector_norm(block, dim=1, dtype=torch.float64, out=out)  # copies the block to float64
    unusable = ~(norms.isfinite() & (norms > 0))
    if unusable.any():
        raise ValueError(
            f"features must be finite and not all zeros in a row, but row {int(unusable.int().argmax())} and "
            f"{int(unusable.sum()) - 1} more of {len(rows)} are; check the network that produced them"
        )
    return rows, 1 / norms
