"""The graph of ``jaccard`` in tensor operations, for devices other than the CPU.

The stages are those of ``jaccard``, over blocks of rows that bound the memory. A sparse matrix is three tensors: the
first entry of each row, and the column and value of each entry. Weights are whole numbers of a very small unit, whose
sums do not depend on their order, so that a device computes the same graph at every run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_UNIT = 2.0**-40  # of the weights
_AT_ONCE = 1 << 24  # elements of the largest tensors of a block


class _Rows(NamedTuple):
    """A sparse (N, N) matrix whose entries are in the order of rows, and in each row of columns."""

    first: Tensor  # (N + 1,) int64
    columns: Tensor  # (entries,) int64
    values: Tensor  # (entries,) int64

    @property
    def rows(self) -> Tensor:
        counts = self.first.diff()
        return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)


@torch.no_grad()
def graph_on_device(
    features: Tensor, scale: Tensor, ranks: Tensor, *, k2: int, max_distance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``jaccard_graph`` of features on any device.

    Args:
        features: (N, D), float32 or float64.
        scale: (N,) one over their norms.
        ranks: (N, k1) int64.
        k2, max_distance: see ``jaccard_graph``.

    Returns:
        On the CPU: ``counts`` (N,) int64, the number of entries of each row, and their ``columns`` (entries,) int32 and
        ``distances`` (entries,) float32.
    """
    weights = _neighbor_weights(features, scale, ranks)
    if k2 > 1:
        weights = _sum_over_neighbors(weights, ranks[:, :k2])
    num_rows = len(ranks)
    keys, distances = _distances(weights, k2 / _UNIT, max_distance)
    rows, columns = keys // num_rows, keys % num_rows
    apart = rows != columns
    keys, order = torch.cat([keys, (columns * num_rows + rows)[apart]]).sort()
    distances = torch.cat([distances, distances[apart]])[order]
    counts = (keys // num_rows).bincount(minlength=num_rows)
    return counts.cpu(), (keys % num_rows).int().cpu(), distances.cpu()


def _mutual(ranks: Tensor) -> Tensor:
    """(N, k) whether a neighbour has the row among its own k neighbours."""
    num_rows, k = ranks.shape
    mutual = torch.empty_like(ranks, dtype=torch.bool)
    for block in torch.arange(num_rows, device=ranks.device).split(max(1, _AT_ONCE // (k * k))):
        mutual[block] = (ranks[ranks[block]] == block[:, None, None]).any(dim=2)
    return mutual


def _neighbor_weights(features: Tensor, scale: Tensor, ranks: Tensor) -> _Rows:
    """Stages 1 to 3: the weights over the expanded sets E(i), in units."""
    num_rows, k1 = ranks.shape
    half = ranks[:, : round(k1 / 2) + 1]
    reciprocal = ranks.where(_mutual(ranks), num_rows)  # N stands for nothing; it comes last when a row is sorted
    half = half.where(_mutual(half), num_rows)
    counts, columns, values = [], [], []
    width = k1 * (1 + half.shape[1])
    for block in torch.arange(num_rows, device=ranks.device).split(max(1, _AT_ONCE // width)):
        expanded = _expanded(reciprocal[block], half)
        filled = expanded < num_rows
        own, found = block.repeat_interleave(filled.sum(1)), expanded[filled]
        few = max(1, _AT_ONCE // features.shape[1])
        pairs = zip(own.split(few), found.split(few), strict=True)
        dots = torch.cat([(features[i] * features[j]).sum(dim=1) for i, j in pairs])
        weights = torch.zeros_like(expanded, dtype=torch.float64)
        weights[filled] = (2 * dots * scale[own] * scale[found] - 2).exp()
        weights /= weights.sum(dim=1, keepdim=True)
        counts.append(filled.sum(1))
        columns.append(found)
        values.append((weights[filled] / _UNIT).round().long())
    return _Rows(_first(torch.cat(counts)), torch.cat(columns), torch.cat(values))


def _expanded(reciprocal: Tensor, half: Tensor) -> Tensor:
    """The sets E(i) of a block of rows, (B, W) in ascending order with N in place of what is listed twice.

    reciprocal: (B, k1), the sets R(i, k1) of the block. half: (N, h), the sets R(q, k1/2) of all rows.
    """
    nothing = len(half)
    present = reciprocal < nothing
    others = half[reciprocal.clamp(max=nothing - 1)].where(present[..., None], nothing)  # (B, k1, h)
    members = reciprocal.sort(dim=1).values
    flat = others.flatten(1)
    place = torch.searchsorted(members, flat).clamp_(max=members.shape[1] - 1)
    inside = ((members.gather(1, place) == flat) & (flat < nothing)).view_as(others)
    joins = 3 * inside.sum(dim=2) > 2 * (others < nothing).sum(dim=2)
    columns = torch.cat([reciprocal, others.where(joins[..., None], nothing).flatten(1)], dim=1).sort(dim=1).values
    columns[:, 1:].masked_fill_(columns.diff(dim=1) == 0, nothing)
    return columns


def _sum_over_neighbors(weights: _Rows, ranks: Tensor) -> _Rows:
    """Stage 4 times k2: the sum of V_j over the first k2 neighbours j of i."""
    num_rows, k2 = ranks.shape
    counts, columns, values = [], [], []
    for start, stop in _blocks(weights.first.diff()[ranks].sum(1)):
        sources = ranks[start:stop].flatten()
        which, entry = _ranges(weights.first[sources], weights.first[sources + 1])
        keys = (start + which // k2) * num_rows + weights.columns[entry]
        keys, sums = _sum_by_key(keys, weights.values[entry])
        counts.append((keys // num_rows - start).bincount(minlength=stop - start))
        columns.append(keys % num_rows)
        values.append(sums)
    return _Rows(_first(torch.cat(counts)), torch.cat(columns), torch.cat(values))


def _distances(weights: _Rows, total: float, max_distance: float) -> tuple[Tensor, Tensor]:
    """The distances on and above the diagonal for rows of sum ``total``, and their keys i * N + j."""
    num_rows = len(weights.first) - 1
    rows = weights.rows
    order = weights.columns.argsort(stable=True)  # by column, and within a column by row
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    end = _first(weights.columns.bincount(minlength=num_rows))[weights.columns + 1]
    # The entries of the same column from this one on are those of the rows j >= i.
    costs = torch.cat([place.new_zeros(1), (end - place).cumsum(0)])[weights.first].diff()
    keys, distances = [], []
    for start, stop in _blocks(costs):
        mine = slice(weights.first[start], weights.first[stop])
        which, entry = _ranges(place[mine], end[mine])
        other = order[entry]
        found, shared = _sum_by_key(
            rows[mine][which] * num_rows + rows[other], weights.values[mine][which].minimum(weights.values[other])
        )
        overlap = shared / total
        distance = (1 - overlap / (2 - overlap)).clamp_(min=0).float()
        near = (distance < 1) & (distance <= max_distance)
        keys.append(found[near])
        distances.append(distance[near])
    return torch.cat(keys), torch.cat(distances)


def _first(counts: Tensor) -> Tensor:
    """(N + 1,) where the entries of each row begin."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _blocks(costs: Tensor) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of rows whose costs sum to at most ``_AT_ONCE``, or single rows."""
    ends = costs.cumsum(0).cpu().numpy()
    start = 0
    while start < len(ends):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _AT_ONCE, side="right")))
        yield start, stop
        start = stop


def _ranges(starts: Tensor, stops: Tensor) -> tuple[Tensor, Tensor]:
    """All numbers of the ranges [start, stop), one range after the other, and before them the number of the range."""
    lengths = stops - starts
    which = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    numbers = torch.arange(len(which), device=lengths.device)
    return which, numbers + (starts - lengths.cumsum(0) + lengths)[which]


def _sum_by_key(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The different keys in ascending order, and the sum of the values of each."""
    keys, order = keys.sort()
    last = torch.cat([keys.diff() != 0, keys.new_ones(min(len(keys), 1), dtype=torch.bool)]).nonzero()[:, 0]
    sums = values[order].cumsum(0)[last]
    return keys[last], torch.cat([sums[:1], sums.diff()])
