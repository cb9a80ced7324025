"""Approximate nearest neighbours: a search in cells, then one pass over the neighbours of neighbours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numba import njit
from torch import Tensor

from ._arrays import map_blocks
from ._candidates import Found, Progress, dot, insert, search_in_turn
from .screen import Screen, candidates_for, largest_products, precisions

_SEARCHED = 1024  # queries per block that is compared with the centres
_RANKED = 2048  # queries per block for which a thread ranks candidates; each block takes memory for all rows

_ROWS_PER_CENTRE = 4
_MOST_CENTRES = 2**18  # reached at a million rows; from there on time grows linearly with the rows
_CELLS = 8  # cells per row
_CROWDED = 16  # times the mean size at which a cell is cut off, which happens with many equal rows


class ApproximateSearch:
    """A search that may miss a few neighbours; called with a block of queries.

    A neighbour that was missed is probably in the list of another neighbour (Dong et al., "Efficient k-nearest neighbor
    graph construction", WWW 2011), so the lists of a row's neighbours are searched for nearer rows. The results are
    ordered by float64 similarities; a list that is too short is not certain.

    A random quarter of the rows are the centres of cells, and each row is in the cells of its eight nearest centres: an
    inverted file (Sivic and Zisserman, "Video Google", ICCV 2003) with soft assignment (Philbin et al., "Lost in
    quantization", CVPR 2008). The few large cells of a k-means quantiser separate the images of one person where
    cameras shift them; among so many centres some are images of the same person. The nearest centres are found as in
    exact search, by a matrix product with a quarter of the rows, on any device. This takes a quarter of the time of
    exact search, and is linear from a million rows on. The precision of the product changes the time but not the cells.
    A row that float32 cannot settle, for instance among many copies, is in the cells that float32 finds.

    Args:
        rows: (N, D) of any norm.
        scale: (N,) one over the norms.
        k: neighbours per query.
        mine: (Q,) int64, the rows that this process compares with the centres and within the cells.
        gather: joins the results of the processes for their rows, on the CPU, into those for all rows.
        progress: wraps the sequence of blocks that are compared with the centres.
    """

    def __init__(
        self,
        rows: Tensor,
        scale: Tensor,
        k: int,
        mine: Tensor,
        gather: Callable[[Tensor], Tensor],
        *,
        progress: Progress,
    ) -> None:
        self.rows, self.scale = rows.cpu().numpy(), scale.cpu().numpy()
        similarities, cells = _nearest_cells(rows, scale, mine, progress)
        cells = gather(cells)
        starts, members = _members(gather(similarities), cells)
        found = _nearest_in_groups(self.rows, self.scale, mine.cpu().numpy(), cells.numpy(), starts, members, k)
        _, lists, counts = found
        lists[np.arange(k) >= counts[:, None]] = -1
        self.lists = gather(torch.from_numpy(lists)).numpy()
        # Every row is in its own list, so that a search of the lists of its neighbours includes its own list.
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
    """Finds the ``k`` nearest of the rows ``centres`` (M,), by ``Screen``."""

    def __init__(self, precision: torch.dtype, rows: Tensor, scale: Tensor, k: int, centres: Tensor) -> None:
        self.screen, self.centres = Screen(precision, rows, scale, k), centres
        self.rounded = self.screen.rounded[centres]

    def __call__(self, queries: Tensor) -> Found:
        k, num_centres = self.screen.k, len(self.centres)
        count = min(candidates_for(k), num_centres)
        scores, candidates = largest_products(self.screen.rounded[queries], self.rounded, count)
        available = torch.full_like(queries, num_centres)
        return self.screen.settle(queries, scores, self.centres[candidates], k, available)


def _num_centres(num_rows: int) -> int:
    return min(-(-num_rows // _ROWS_PER_CENTRE), _MOST_CENTRES)


def _nearest_cells(rows: Tensor, scale: Tensor, queries: Tensor, progress: Progress) -> tuple[Tensor, Tensor]:
    """Similarities (Q, m) to the nearest centres and the numbers (Q, m) int64 of their cells, on the CPU."""
    num_centres = _num_centres(len(rows))
    num_cells = min(_CELLS, num_centres)
    centres = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:num_centres].to(rows.device)
    cell = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    cell[centres] = torch.arange(num_centres, device=rows.device)
    similarities, nearest = search_in_turn(
        [partial(_CentreScreen, precision, rows, scale, num_cells, centres) for precision in precisions(rows.device)],
        queries,
        num_cells,
        dtype=rows.dtype,
        chunk_size=_SEARCHED,
        progress=progress,
    )
    return similarities.cpu(), cell[nearest].cpu()


def _members(similarities: Tensor, cells: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Where the members of each cell start (C + 1,), and the members cell by cell, nearest to the centre first."""
    num_rows, num_cells = cells.shape
    num_centres = _num_centres(num_rows)
    members = similarities.flatten().argsort(descending=True, stable=True)
    members = members[cells.flatten()[members].argsort(stable=True)]
    sizes = cells.flatten().bincount(minlength=num_centres)
    starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    place = torch.arange(len(members)) - starts[:-1].repeat_interleave(sizes)
    largest = _CROWDED * num_cells * max(_ROWS_PER_CENTRE, num_rows // num_centres)
    members = members[place < largest] // num_cells
    starts[1:] = sizes.clamp(max=largest).cumsum(0)
    return starts.numpy(), members.numpy()


def _nearest_in_groups(
    rows: np.ndarray,
    scale: np.ndarray,
    queries: np.ndarray,
    groups: np.ndarray,
    starts: np.ndarray,
    members: np.ndarray,
    k: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ``k`` nearest members of each query's groups.

    Args:
        rows: (N, D) of any norm.
        scale: (N,) one over the norms.
        queries: (Q,) int64, the rows to search for.
        groups: (N, m) int64, the groups that a row is compared with; -1: none.
        starts: (G + 1,) int64, where the members of each group start.
        members: int64 rows, group by group; -1: none.
        k: length of the lists.

    Returns:
        (Q, k) similarities, (Q, k) indices, the query first, and (Q,) how many were found.
    """
    blocks = map_blocks(_nearest_block, len(queries), rows, scale, queries, groups, starts, members, k, block=_RANKED)
    similarities, indices, counts = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return similarities, indices, counts


@njit(nogil=True, cache=True)
def _nearest_block(start, stop, rows, scale, queries, groups, starts, members, k):
    """Like ``_nearest_in_groups``, for queries [start, stop)."""
    similarities = np.full((stop - start, k), -np.inf)
    indices = np.zeros((stop - start, k), np.int64)
    counts = np.zeros(stop - start, np.int64)
    met = np.full(len(rows), -1, np.int32)  # the last query that met each row
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
