"""Exact nearest neighbours under cosine similarity.

A matrix product, in bfloat16 where the machine is faster at it, leaves a few candidates for each row; their
similarities in float64 decide. An error bound tells which rows that settles; the others go on to the next precision.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from .approximate import FaissSearch
from .ranking import Found, Scan, rank_candidates

METHODS = ("exact", "ivf", "hnsw")

_TILE = 16384  # columns of a block of similarities: 32 MiB in half precision, which a large cache holds
_NORMALISED = 1024  # rows normalised at a time


@torch.no_grad()
def k_nearest(
    features: Tensor | np.ndarray,
    k: int,
    *,
    chunk_size: int = 1024,
    device: torch.device | str | None = None,
    method: str = "exact",
    queries: slice = slice(None),
    progress: Callable[[Sequence[Tensor]], Iterable[Tensor]] = iter,
) -> tuple[Tensor, Tensor]:
    """Find the ``k`` most similar rows of every row, the row itself first.

    Exact lists are those of float64 arithmetic, whatever precision the machine multiplies fastest in, and follow from
    the features alone: not from ``chunk_size``, ``queries`` or the number of threads. Rows of equal similarity are
    listed by ascending index, and those of lower index are kept.

    Args:
        features: (N, D) floating point of any precision and any row norm but zero; compared by direction.
        k: neighbours per row, the row itself included; in [1, N].
        chunk_size: queries per block.
        device: where to compute; by default where ``features`` lives.
        method: "exact"; or "ivf" or "hnsw", which miss a few neighbours and save time on large sets (see
            :class:`.FaissSearch`); these search for all rows, whatever ``queries`` selects.
        queries: the rows to search for, all by default. Several processes may each take a slice of the same features.
        progress: wraps the sequence of query blocks, ``tqdm`` for instance; silent by default. Wraps another one where
            blocks left rows for the next precision.

    Returns:
        ``similarities`` (Q, k) in [-1, 1], descending after the first column, and ``indices`` (Q, k) int64,
        for the Q selected rows, on the device of ``features``.

    Raises:
        ValueError: for a wrong shape or type, ``k`` or ``chunk_size`` out of range, an unknown ``method``, or rows that
            have no direction.

    Exact search takes time O(Q N D). Memory beside ``features``: a copy in the precision of the product and a block of
    ``chunk_size`` x 16384 similarities; of half precision features also a copy in float32.
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
    similarities = rows.new_empty(len(selected), k)
    indices = selected.new_empty(len(selected), k)
    left = torch.arange(len(selected), device=rows.device)
    searches: list[Callable[[Tensor, Tensor, int], Callable[[Tensor], Found]]]
    searches = [*(partial(_Screen, precision) for precision in _precisions(rows.device)), Scan]
    if method != "exact":
        searches.insert(0, partial(FaissSearch, method, progress))
    while len(left):
        search = searches.pop(0)(rows, scale, k)
        uncertain = []
        for block in progress(left.split(chunk_size)):
            best, indices[block], certain = search(selected[block])
            similarities[block] = best.to(rows.dtype)
            uncertain.append(block[~certain])
        left = torch.cat(uncertain)
    return similarities.clamp_(-1, 1).to(home), indices.to(home)


def checked_rows(features: Tensor | np.ndarray, device: torch.device | str | None) -> tuple[Tensor, Tensor]:
    """``features`` on ``device``, in float64 if they are and float32 otherwise, and one over each norm (N,) float64."""
    if not isinstance(features, Tensor):
        features = torch.as_tensor(np.require(features, requirements="W"))
    tensor = features.detach()
    if tensor.dim() != 2 or not tensor.is_floating_point():
        raise ValueError(f"features must be a floating point (N, D) matrix, got {tensor.dtype} {tuple(tensor.shape)}")
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    rows = tensor.to(device=device, dtype=dtype).contiguous()
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    unusable = ~(norms.isfinite() & (norms > 0))
    if unusable.any():
        raise ValueError(
            f"features must be finite and not all zeros in a row, but row {int(unusable.int().argmax())} and "
            f"{int(unusable.sum()) - 1} more of {len(rows)} are; check the network that produced them"
        )
    return rows, 1 / norms


@cache
def _precisions(device: torch.device) -> tuple[torch.dtype, ...]:
    """The precisions to multiply in, fastest first. Which they are changes the time and never the result."""

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(512, 1024, dtype=dtype, device=device)
        times = []
        for _ in range(4):  # of which the first warms up
            start = time.perf_counter()
            (matrix @ matrix.T).sum().item()
            times.append(time.perf_counter() - start)
        return min(times)

    fast = seconds(torch.bfloat16) < 0.8 * seconds(torch.float32)
    return (torch.bfloat16, torch.float32) if fast else (torch.float32,)


class _Screen:
    """Candidates by a product in ``precision``, of which float64 keeps the nearest.

    The product of two rounded unit rows is off their cosine by at most the norms of what rounding took from either row,
    the rounding of the sum and that of the result. A row that is further below the k-th candidate than twice that
    cannot be among the k nearest. What float64 then finds must lie within the bound, or the machine computes in another
    way than assumed, and nothing is settled.
    """

    def __init__(self, precision: torch.dtype, rows: Tensor, scale: Tensor, k: int) -> None:
        self.rows, self.scale, self.k = rows, scale, k
        self.rounded = torch.empty_like(rows, dtype=precision)
        self.taken = torch.empty(len(rows), device=rows.device)
        for start in range(0, len(rows), _NORMALISED):
            block = slice(start, start + _NORMALISED)
            unit = rows[block] * scale[block, None].to(rows.dtype)
            self.rounded[block] = unit
            self.taken[block] = torch.linalg.vector_norm(unit - self.rounded[block], dim=1)
        self.absolute = 1.01 * self.taken.max() + (rows.shape[1] + 8) * torch.finfo(torch.float32).eps
        self.relative = 0.51 * torch.finfo(precision).eps

    def __call__(self, queries: Tensor) -> Found:
        num_rows = len(self.rows)
        scores, candidates = self._candidates(queries, min(max(4 * self.k, self.k + 64), num_rows))
        errors = self.absolute + self.taken[queries, None] + self.relative * scores.abs()
        errors[:, 0] = 0  # the row itself, which comes first
        lowest = (scores - errors)[:, self.k - 1, None]
        counts = (scores + errors >= lowest).sum(1)
        complete = (counts >= self.k) & ((counts < scores.shape[1]) | (scores.shape[1] == num_rows))
        similarities, indices, within = rank_candidates(
            self.rows, self.scale, queries, candidates, counts, self.k, scores, errors
        )
        return similarities, indices, complete & within

    def _candidates(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The ``count`` best scores (b, count) float32, descending after the query itself, and where they are."""
        query_rows = self.rounded[queries]
        scores, indices = [], []
        for start in range(0, len(self.rounded), _TILE):
            tile = query_rows @ self.rounded[start : start + _TILE].T
            # Copies of a row are as similar to it as it is to itself: lift the row over them.
            own = ((queries >= start) & (queries < start + _TILE)).nonzero().squeeze(1)
            tile[own, queries[own] - start] = torch.inf
            best = tile.topk(min(count, tile.shape[1]), sorted=False)
            scores.append(best.values.float())
            indices.append(best.indices + start)
        best = torch.cat(scores, 1).topk(count)
        return best.values, torch.cat(indices, 1).gather(1, best.indices)
