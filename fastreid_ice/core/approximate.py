"""Approximate nearest neighbours: a search in cells, then one look at the neighbours of neighbours."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numba import njit
from torch import Tensor

from ._arrays import map_blocks
from ._candidates import Found, Progress, dot, insert, search_in_turn
from .screen import Screen, candidates_for, largest_products, precisions

_SEARCHED = 1024  # rows searched for at a time
_RANKED = 256  # rows that a thread ranks candidates for at a time

_ROWS_PER_CENTRE = 4
_MOST_CENTRES = 2**18  # from a million rows on, time grows with their number alone
_CELLS = 8  # cells that a row is in
_CROWDED = 16  # a cell keeps so many times the mean, such as where many rows are equal


class ApproximateSearch:
    """Neighbours that may miss a few; called with a block of queries.

    A neighbour that was missed is likely in the list of another one (Dong et al., "Efficient k-nearest neighbor graph
    construction", WWW 2011), so the lists of a row's neighbours are looked through for nearer rows.
    What was found is ordered by float64 similarities; a list that comes short is not certain.

    A random quarter of the rows are centres of cells, and each row is in the cells of its eight nearest: an inverted
    file (Sivic and Zisserman, "Video Google", ICCV 2003) with soft assignment (Philbin et al., "Lost in quantization",
    CVPR 2008). The few large cells of a k-means quantiser part the images of one person where cameras shift them; among
    so many centres some are images of the same person. The nearest centres are found as in exact search, by a matrix
    product with a quarter of the rows, on any device: a quarter of the time of exact search, linear from a million rows
    on. The precision of the product changes the time and not the cells; a row that float32 cannot settle, as among many
    copies, is in those that float32 finds.

    Args:
        rows: (N, D) of any norm.
        scale: (N,) one over the norms.
        k: neighbours per query.
        progress: wraps the sequence of blocks that are searched.
    """

    def __init__(self, rows: Tensor, scale: Tensor, k: int, *, progress: Progress) -> None:
        self.rows, self.scale = rows.cpu().numpy(), scale.cpu().numpy()
        self.lists = _lists(rows, scale, k, progress)
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


class _CentreScreen:
    """The ``k`` nearest of the rows ``centres`` (M,) by :class:`.Screen`."""

    def __init__(self, precision: torch.dtype, rows: Tensor, scale: Tensor, k: int, centres: Tensor) -> None:
        self.screen, self.centres = Screen(precision, rows, scale, k), centres
        self.rounded = self.screen.rounded[centres]

    def __call__(self, queries: Tensor) -> Found:
        k, num_centres = self.screen.k, len(self.centres)
        count = min(candidates_for(k), num_centres)
        scores, candidates = largest_products(self.screen.rounded[queries], self.rounded, count)
        available = torch.full_like(queries, num_centres)
        return self.screen.settle(queries, scores, self.centres[candidates], k, available)


def _lists(rows: Tensor, scale: Tensor, k: int, progress: Progress) -> np.ndarray:
    """Lists (N, k) int64 of what shares a cell with a row; -1 where that is fewer than ``k``."""
    num_centres = min(-(-len(rows) // _ROWS_PER_CENTRE), _MOST_CENTRES)
    num_cells = min(_CELLS, num_centres)
    centres = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:num_centres].to(rows.device)
    cell = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    cell[centres] = torch.arange(num_centres, device=rows.device)
    similarities, nearest = search_in_turn(
        [partial(_CentreScreen, precision, rows, scale, num_cells, centres) for precision in precisions(rows.device)],
        torch.arange(len(rows), device=rows.device),
        num_cells,
        dtype=rows.dtype,
        chunk_size=_SEARCHED,
        progress=progress,
    )
    similarities, cells = similarities.cpu(), cell[nearest].cpu()

    # Members by cell, the nearest to the centre first.
    members = similarities.flatten().argsort(descending=True, stable=True)
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
