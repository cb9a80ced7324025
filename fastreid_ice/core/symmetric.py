"""Candidates for the nearest neighbours of all rows, from half of the products: that of rows i and j serves both.

The rows are searched in panels. A panel is multiplied with its own rows and all later ones; a product goes to the list
of its row, and to the list of its column. A list only takes what is above its bound, and almost no product is: a bound
is first estimated on a sample of the columns, and rises when a list is full. So a product costs little more than two
comparisons, where a partial sort costs ten times that.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from ._arrays import map_blocks
from ._candidates import Found
from .screen import Screen, candidates_for

_LEAST, _MOST = 4096, 500_000  # rows: a sample of fewer says little, and the lists of more take over a gigabyte
_LONGEST = 512  # candidates of a row
_COLUMNS = 4096  # of a tile
_SAMPLED = 32  # one of so many columns is in the sample
_ROOM = 2  # entries of a list, in multiples of those that are kept when it is full
_COMPARED = 32  # products that are compared at once; few of these groups hold one that is above its bound
_ROWS_AT_ONCE, _COLUMNS_AT_ONCE = 128, 512  # per task of a thread
_INTEGERS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}  # positive floats have the order of their bits


class SymmetricScreen(Screen):
    """``Screen`` for all rows in ascending order: each call continues with the rows after those of the last one."""

    @staticmethod
    def suits(rows: Tensor, queries: Tensor, k: int) -> bool:
        """Whether these are all rows in order, on a CPU, and neither too few nor too many."""
        return (
            rows.device.type == "cpu"
            and _LEAST <= len(rows) <= _MOST
            and candidates_for(k) <= _LONGEST
            and torch.equal(queries, torch.arange(len(rows)))
        )

    def __init__(self, precision: torch.dtype, rows: Tensor, scale: Tensor, k: int) -> None:
        super().__init__(precision, rows, scale, k)
        self.bounds = self._estimated_bounds().view(_INTEGERS[precision]).numpy()
        room = _ROOM * self.count
        self.scores = np.empty((len(rows), room), self.bounds.dtype)
        self.columns = np.empty((len(rows), room), np.int32)
        self.filled = np.zeros(len(rows), np.int64)
        self.next = 0

    def _estimated_bounds(self) -> Tensor:
        """(N,) products, at least 0, that about as many others exceed as a list has room for.

        A row for which they are too few is settled by a later search.
        """
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(self.rounded), generator=generator)[: len(self.rounded) // _SAMPLED]
        sample = self.rounded[chosen]
        place = -(-_ROOM * self.count // _SAMPLED)
        blocks = [(block @ sample.T).topk(place).values[:, -1] for block in self.rounded.split(_COLUMNS)]
        return torch.cat(blocks).clamp_(min=0).abs_()  # no -0, whose bits are those of a negative integer

    def __call__(self, queries: Tensor) -> Found:
        start, stop = self.next, self.next + len(queries)
        if int(queries[0]) != start or int(queries[-1]) != stop - 1:
            raise ValueError(f"the rows from {start} on come next, got those from {int(queries[0])} on")
        self.next = stop
        lists = (self.scores, self.columns, self.filled, self.bounds, self.count)
        for first in range(start, len(self.rounded), _COLUMNS):
            last = min(first + _COLUMNS, len(self.rounded))
            products = self.rounded[start:stop] @ self.rounded[first:last].T
            tile = products.view(_INTEGERS[products.dtype]).numpy()
            map_blocks(_add_to_rows, len(tile), tile, start, first, *lists, block=_ROWS_AT_ONCE)
            others = max(first, stop)  # the panel's own columns are its rows, which have them already
            if others < last:
                tile = tile[:, others - first :]
                map_blocks(_add_to_columns, tile.shape[1], tile, start, others, *lists, block=_COLUMNS_AT_ONCE)
        scores, candidates, bounds = self._lists(queries)
        return self.settle(queries, scores, candidates, self.k, torch.full_like(queries, len(self.rows)), bounds)

    def _lists(self, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, descending, and columns of the candidates (b, m), the row itself first; and the bounds (b,)."""
        rows = slice(int(queries[0]), int(queries[-1]) + 1)
        scores, bounds = (
            torch.from_numpy(array[rows]).view(self.rounded.dtype).float() for array in (self.scores, self.bounds)
        )
        missing = torch.arange(scores.shape[1]) >= torch.from_numpy(self.filled[rows])[:, None]
        scores.masked_fill_(missing, -torch.inf)
        scores = torch.cat([torch.full((len(scores), 1), torch.inf), scores], 1)
        columns = torch.cat([queries[:, None], torch.from_numpy(self.columns[rows]).long()], 1)
        scores, order = scores.sort(1, descending=True)
        return scores, columns.gather(1, order).masked_fill_(scores == -torch.inf, 0), bounds


@njit(nogil=True, cache=True)
def _add_to_rows(start, stop, tile, first_row, first_column, scores, columns, filled, bounds, kept):
    """Adds the products of a tile to the lists of its rows [start, stop)."""
    for r in range(start, stop):
        row = first_row + r
        for first in range(0, tile.shape[1], _COMPARED):
            part = tile[r, first : first + _COMPARED]
            bound = bounds[row]
            found = False
            for i in range(len(part)):
                found |= part[i] > bound
            if found:
                for i in range(len(part)):
                    column = first_column + first + i
                    if part[i] > bounds[row] and column != row:
                        _add(row, part[i], column, scores, columns, filled, bounds, kept)


@njit(nogil=True, cache=True)
def _add_to_columns(start, stop, tile, first_row, first_column, scores, columns, filled, bounds, kept):
    """Adds the products of a tile to the lists of its columns [start, stop)."""
    own = bounds[first_column + start : first_column + stop].copy()  # close to each other in memory
    for r in range(tile.shape[0]):
        row = tile[r, start:stop]
        for first in range(0, len(row), _COMPARED):
            part, bound = row[first : first + _COMPARED], own[first : first + _COMPARED]
            found = False
            for i in range(len(part)):
                found |= part[i] > bound[i]
            if found:
                for i in range(len(part)):
                    if part[i] > bound[i]:
                        column = first_column + start + first + i
                        _add(column, part[i], first_row + r, scores, columns, filled, bounds, kept)
                        bound[i] = bounds[column]


@njit(nogil=True, cache=True)
def _add(row, score, column, scores, columns, filled, bounds, kept):
    """Adds to a list, of which only the ``kept`` largest stay when it is full; its bound is then the least of these."""
    count = filled[row]
    if count == scores.shape[1]:
        bounds[row] = _largest_first(scores[row], columns[row], kept)
        count = kept
    if score > bounds[row]:
        scores[row, count] = score
        columns[row, count] = column
        count += 1
    filled[row] = count


@njit(nogil=True, cache=True)
def _largest_first(scores, columns, kept):
    """Quickselect: moves the ``kept`` largest to the front, and returns the least of them."""
    low, high = 0, len(scores) - 1
    while low < high:
        pivot = scores[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while scores[i] > pivot:
                i += 1
            while scores[j] < pivot:
                j -= 1
            if i <= j:
                scores[i], scores[j] = scores[j], scores[i]
                columns[i], columns[j] = columns[j], columns[i]
                i += 1
                j -= 1
        if kept - 1 <= j:
            high = j
        elif kept - 1 >= i:
            low = i
        else:
            break
    return scores[kept - 1]
