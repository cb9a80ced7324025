"""Candidates for nearest neighbours by a matrix product in low precision, with a bound on the error."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from ._candidates import Found, rank_candidates
from ._largest import Largest, product_in

_NORMALISED = 1024  # rows per block that are normalised

# Columns [first, last) of a block of products, and (b, last - first) bool, which of them count; None for all.
Piece = tuple[int, int, Tensor | None]


@cache
def precisions(device: torch.device) -> tuple[torch.dtype, ...]:
    """The precisions to multiply in, fastest first. They affect the time but never the result."""

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(512, 1024, dtype=dtype, device=device)
        start = time.perf_counter()
        (matrix @ matrix.T).sum().item()
        return time.perf_counter() - start

    # In turns, because other processes may use the cores for a while; the first runs warm up.
    times = [(seconds(torch.bfloat16), seconds(torch.float32)) for _ in range(10)]
    half, single = map(min, zip(*times, strict=True))
    fast = half < 0.8 * single
    return (torch.bfloat16, torch.float32) if fast else (torch.float32,)


class Screen:
    """Selects candidates by a product in ``precision``, and keeps the nearest of them by float64.

    The product of two rounded unit rows differs from their cosine by at most the norms of the rounding errors of both
    rows, plus the rounding of the sum and that of the result. A row that is below the k-th candidate by more than twice
    that bound cannot be among the k nearest. The float64 similarities must lie within the bound; if they do not, the
    machine does not compute as assumed, and nothing is settled.

    Args:
        precision: of the product.
        rows: (N, D) float32 or float64, of any norm.
        scale: (N,) float64, one over the norms.
        k: length of the lists.
        order: (N,) int64, the order in which the rounded rows are kept; by default that of ``rows``.
        candidates: how many are selected for each query; more settle rows with many near copies, such as the frames of
            a video.
    """

    def __init__(
        self,
        precision: torch.dtype,
        rows: Tensor,
        scale: Tensor,
        k: int,
        order: Tensor | None = None,
        *,
        candidates: int | None = None,
    ) -> None:
        self.rows, self.scale, self.k = rows, scale, k
        self.count = min(candidates or candidates_for(k), len(rows))
        self.rounded, self.taken = rounded_units(precision, rows, scale, order)
        self.absolute = 1.01 * self.taken.max() + (rows.shape[1] + 8) * torch.finfo(torch.float32).eps
        self.relative = 0.51 * torch.finfo(precision).eps

    def __call__(self, queries: Tensor) -> Found:
        scores, candidates = largest_products(self.rounded[queries], self.rounded, self.count, own=queries)
        return self.settle(queries, scores, candidates, self.k, torch.full_like(queries, len(self.rows)))

    def settle(
        self,
        queries: Tensor,
        scores: Tensor,
        candidates: Tensor,
        k: int,
        available: Tensor,
        bounds: Tensor | None = None,
    ) -> Found:
        """The ``k`` nearest of each query's candidates by float64, or all of them if fewer are available.

        Args:
            queries: (b,) int64 rows.
            scores: (b, m) products, descending; inf for the query itself, -inf for filler.
            candidates: (b, m) int64 rows.
            k: length of the lists.
            available: (b,) int64, the number of rows from which each query's candidates were selected.
            bounds: (b,) float32: no product above it was left out; by default the last score, if any was left out.
        """
        if bounds is None:
            bounds = scores[:, -1].where(scores.shape[1] < available, -torch.inf)
        wanted = available.clamp(max=k)
        errors, bound_errors = (self._errors(queries, products) for products in (scores, bounds[:, None]))
        errors.masked_fill_(errors == torch.inf, 0)  # the row itself comes first, whatever its product
        lowest = (scores - errors).gather(1, (wanted - 1).clamp(min=0)[:, None])
        counts = ((scores + errors >= lowest) & (scores > -torch.inf)).sum(1)
        left_out = (bounds > -torch.inf) & (bounds[:, None] + bound_errors >= lowest)[:, 0]
        complete = (counts >= wanted) & ~left_out
        similarities, indices, within = rank_candidates(
            self.rows, self.scale, queries, candidates, counts, k, scores, errors
        )
        return similarities, indices, complete & within

    def _errors(self, queries: Tensor, products: Tensor) -> Tensor:
        """How far each product (b, m) of a query may be from the cosine."""
        return self.absolute + self.taken[queries, None] + self.relative * products.abs()


def candidates_for(k: int) -> int:
    """How many candidates are kept for ``k`` neighbours: enough to settle nearly all rows."""
    return max(4 * k, k + 64)


def rounded_units(
    precision: torch.dtype, rows: Tensor, scale: Tensor, order: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Unit rows (N, D) in ``precision``, in ``order`` if given; and (N,) the norm of the rounding error of each row, in
    the order of ``rows``."""
    rounded = torch.empty_like(rows, dtype=precision)
    taken = torch.empty(len(rows), device=rows.device)
    for start in range(0, len(rows), _NORMALISED):
        block = slice(start, start + _NORMALISED)
        chosen = block if order is None else order[block]
        unit = rows[chosen] * scale[chosen, None].to(rows.dtype)
        rounded[block] = unit
        taken[chosen] = torch.linalg.vector_norm(unit - rounded[block], dim=1).to(taken.dtype)
    return rounded, taken


def largest_products(
    queries: Tensor, rows: Tensor, count: int, own: Tensor | None = None, pieces: Sequence[Piece] | None = None
) -> tuple[Tensor, Tensor]:
    """The ``count`` largest products of each query with the rows.

    Args:
        queries: (b, D).
        rows: (N, D) in the same precision.
        count: how many, at most the number of columns.
        own: (b,) int64, a row to list first whatever its product, because copies of a row are as near to it as itself.
        pieces: the columns to consider, by default all.

    Returns:
        (b, count) float32 products, descending, and (b, count) int64 indices of their rows; -inf marks filler.
    """
    largest = Largest(queries, count)
    memory = queries.new_empty(len(queries) * min(largest.widest, len(rows)))
    for first, last, counting in [(0, len(rows), None)] if pieces is None else pieces:
        start = first
        while start < last:
            stop = min(start + largest.width, last)
            tile = product_in(memory, queries, rows[start:stop])
            if counting is not None:
                tile.masked_fill_(~counting[:, start - first : stop - first], -torch.inf)
            if own is not None:
                inside = ((own >= start) & (own < stop)).nonzero().squeeze(1)
                tile[inside, own[inside] - start] = torch.inf
            largest.add(tile, start)
            start = stop
    return largest.read()
