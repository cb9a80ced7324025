"""Approximate nearest neighbours: an inverted file, then one look at the neighbours of neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numba import njit
from torch import Tensor

from ._arrays import map_blocks
from ._candidates import Found, dot, insert
from .screen import largest_products, precisions, rounded_units

_SEARCHED = 1024  # rows searched for at a time
_RANKED = 256  # rows that a thread ranks candidates for at a time

_ROWS_PER_CENTRE = 4
_MOST_CENTRES = 2**18  # from a million rows on, time grows with their number alone
_CELLS = 8  # cells that a row is in
_CROWDED = 16  # a cell keeps so many times the mean, such as where many rows are equal

Progress = Callable[[Sequence[Tensor]], Iterable[Tensor]]


class ApproximateSearch:
    """Neighbours that may miss a few; called with a block of queries.

    A neighbour that was missed is likely in the list of another one (Dong et al., "Efficient k-nearest neighbor graph
    construction", WWW 2011), so the lists of a row's neighbours are looked through for nearer rows.
    What was found is ordered by float64 similarities; a list that comes short is not certain.

    It is an inverted file (Sivic and Zisserman, "Video Google", ICCV 2003) with a random quarter of the rows as
    centres, each row in the cells of its eight nearest (soft assignment, Philbin et al., "Lost in quantization", CVPR
    2008). The few large cells of a k-means quantiser part the images of one person where cameras shift them; among so
    many centres some are images of the same person. To find the nearest takes a matrix product with a quarter of the
    rows, on any device and in its fastest precision: a quarter of the time of exact search, linear from a million
    rows on. Equal runs on one machine give equal lists.

    Args:
        progress: wraps the sequence of blocks that are searched.
        rows: (N, D) of any norm.
        scale: (N,) one over the norms.
        k: neighbours per query.
    """

    def __init__(self, progress: Progress, rows: Tensor, scale: Tensor, k: int) -> None:
        self.rows, self.scale = rows.cpu().numpy(), scale.cpu().numpy()
        self.lists = _ivf_lists(rows, scale, k, progress)
        # Every row is in its own list, so that the lists of its neighbours hold all that is in its own.
        everything = np.arange(len(rows))
        missing = (self.lists != everything[:, None]).all(1)
        self.lists[missing, -1] = everything[missing]

    def __call__(self, queries: Tensor) -> Found:
        chosen, k = queries.cpu().numpy(), self.lists.shape[1]
        starts = np.arange(len(self.lists) + 1) * k
        found = _nearest_in_groups(self.rows, self.scale, chosen, self.lists, starts, self.lists.ravel(), k)
        similarities, indices, counts = (torch.as_tensor(array, device=queries.device) for array in found)
        return similarities, indices, counts == k


def _ivf_lists(rows: Tensor, scale: Tensor, k: int, progress: Progress) -> np.ndarray:
    """Lists (N, k) int64 by cells around sampled rows; -1 where the cells of a row hold fewer than ``k``."""
    num_centres = min(-(-len(rows) // _ROWS_PER_CENTRE), _MOST_CENTRES)
    num_cells = min(_CELLS, num_centres)
    centres = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:num_centres].to(rows.device)
    units, _ = rounded_units(precisions(rows.device)[0], rows, scale)
    centre_units = units[centres]
    nearest = [
        largest_products(units[block], centre_units, num_cells)
        for block in progress(torch.arange(len(rows), device=rows.device).split(_SEARCHED))
    ]
    del units
    products, cells = (torch.cat(parts).cpu() for parts in zip(*nearest, strict=True))

    # Members by cell, the nearest to the centre first.
    members = products.flatten().argsort(descending=True, stable=True)
    members = members[cells.flatten()[members].argsort(stable=True)]
    sizes = cells.flatten().bincount(minlength=num_centres)
    starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    place = torch.arange(len(members)) - starts[:-1].repeat_interleave(sizes)
    largest = _CROWDED * num_cells * max(_ROWS_PER_CENTRE, len(rows) // num_centres)
    members = members[place < largest] // num_cells
    starts[1:] = sizes.clamp(max=largest).cumsum(0)

    everything = np.arange(len(rows))
    _, lists, counts = _nearest_in_groups(
        rows.cpu().numpy(), scale.cpu().numpy(), everything, cells.numpy(), starts.numpy(), members.numpy(), k
    )
    lists[np.arange(k) >= counts[:, None]] = -1
    return lists


def _nearest_in_groups(
    rows: np.ndarray,
    scale: np.ndarray,
    queries: np.ndarray,
    groups: np.ndarray,
    starts: np.ndarray,
    members: np.ndarray,
    k: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ``k`` nearest among the members of each query's groups.

    Args:
        rows: (N, D) of any norm.
        scale: (N,) one over the norms.
        queries: (Q,) int64, the rows to search for.
        groups: (N, m) int64, the groups that a row is compared with; -1: none.
        starts: (G + 1,) int64, where the members of each group start.
        members: int64 rows, group by group; -1: none.
        k: length of the lists.

    Returns:
        (Q, k) similarities, (Q, k) indices, the query first, and (Q,) how many there are.
    """
    blocks = map_blocks(_nearest_block, len(queries), rows, scale, queries, groups, starts, members, k, block=_RANKED)
    similarities, indices, counts = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return similarities, indices, counts


@njit(nogil=True, cache=True)
def _nearest_block(start, stop, rows, scale, queries, groups, starts, members, k):
    """As above, for queries [start, stop)."""
    similarities = np.full((stop - start, k), -np.inf)
    indices = np.zeros((stop - start, k), np.int64)
    counts = np.zeros(stop - start, np.int64)
    met = np.full(len(rows), -1)  # the last query that met each row
    unit = np.empty(rows.shape[1])
    for r in range(start, stop):
        i = queries[r]
        unit[:] = rows[i] * scale[i]
        filled = insert(similarities[r - start], indices[r - start], 0, np.inf, i)
        met[i] = r
        for group in groups[i]:
            if group < 0:
                continue
            for j in members[starts[group] : starts[group + 1]]:
                if j >= 0 and met[j] != r:
                    met[j] = r
                    similarity = dot(unit, rows[j]) * scale[j]
                    filled = insert(similarities[r - start], indices[r - start], filled, similarity, j)
        counts[r - start] = filled
    return similarities, indices, counts
