"""Candidates for nearest neighbours by a matrix product in low precision, with a bound on what that precision loses."""

from __future__ import annotations

import time
from functools import cache

import torch
from torch import Tensor

from ._candidates import Found, rank_candidates

_TILE = 16384  # columns of a block of similarities: 32 MiB in half precision, which a large cache holds
_NORMALISED = 1024  # rows normalised at a time


@cache
def precisions(device: torch.device) -> tuple[torch.dtype, ...]:
    """The precisions to multiply in, fastest first. Which they are changes the time and never the result."""

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(512, 1024, dtype=dtype, device=device)
        start = time.perf_counter()
        (matrix @ matrix.T).sum().item()
        return time.perf_counter() - start

    # In turns, since other processes may take the cores for a while; the first ones warm up.
    times = [(seconds(torch.bfloat16), seconds(torch.float32)) for _ in range(10)]
    half, single = map(min, zip(*times, strict=True))
    fast = half < 0.8 * single
    return (torch.bfloat16, torch.float32) if fast else (torch.float32,)


class Screen:
    """Candidates by a product in ``precision``, of which float64 keeps the nearest.

    The product of two rounded unit rows is off their cosine by at most the norms of what rounding took from either row,
    the rounding of the sum and that of the result. A row that is further below the k-th candidate than twice that
    cannot be among the k nearest. What float64 then finds must lie within the bound, or the machine computes in another
    way than assumed, and nothing is settled.
    """

    def __init__(self, precision: torch.dtype, rows: Tensor, scale: Tensor, k: int) -> None:
        self.rows, self.scale, self.k = rows, scale, k
        self.rounded, self.taken = rounded_units(precision, rows, scale)
        self.absolute = 1.01 * self.taken.max() + (rows.shape[1] + 8) * torch.finfo(torch.float32).eps
        self.relative = 0.51 * torch.finfo(precision).eps

    def __call__(self, queries: Tensor) -> Found:
        num_rows = len(self.rows)
        count = min(max(4 * self.k, self.k + 64), num_rows)
        scores, candidates = largest_products(self.rounded[queries], self.rounded, count, own=queries)
        errors = self.absolute + self.taken[queries, None] + self.relative * scores.abs()
        errors[:, 0] = 0  # the row itself, which comes first
        lowest = (scores - errors)[:, self.k - 1, None]
        counts = (scores + errors >= lowest).sum(1)
        complete = (counts >= self.k) & ((counts < scores.shape[1]) | (scores.shape[1] == num_rows))
        similarities, indices, within = rank_candidates(
            self.rows, self.scale, queries, candidates, counts, self.k, scores, errors
        )
        return similarities, indices, complete & within


def rounded_units(precision: torch.dtype, rows: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows (N, D) in ``precision``, and (N,) the norm of what rounding took from each."""
    rounded = torch.empty_like(rows, dtype=precision)
    taken = torch.empty(len(rows), device=rows.device)
    for start in range(0, len(rows), _NORMALISED):
        block = slice(start, start + _NORMALISED)
        unit = rows[block] * scale[block, None].to(rows.dtype)
        rounded[block] = unit
        taken[block] = torch.linalg.vector_norm(unit - rounded[block], dim=1)
    return rounded, taken


def largest_products(queries: Tensor, rows: Tensor, count: int, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The ``count`` largest products of each query with the rows.

    Args:
        queries: (b, D).
        rows: (N, D) in the same precision.
        count: how many, at most N.
        own: (b,) int64, a row to put first whatever its product, as copies of a row are as near to it as it is itself.

    Returns:
        (b, count) products float32, descending, and (b, count) int64 where they are.
    """
    products = torch.empty(len(queries), 0, device=queries.device)
    indices = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(rows), _TILE):
        tile = queries @ rows[start : start + _TILE].T
        if own is not None:
            inside = ((own >= start) & (own < start + _TILE)).nonzero().squeeze(1)
            tile[inside, own[inside] - start] = torch.inf
        best = tile.topk(min(count, tile.shape[1]), sorted=False)
        # Keeping the best of all tiles up to the end would scatter what malloc holds over gigabytes.
        indices = torch.cat([indices, best.indices + start], 1)
        products, order = torch.cat([products, best.values.float()], 1).topk(min(count, indices.shape[1]))
        indices = indices.gather(1, order)
    return products, indices
