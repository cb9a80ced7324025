"""The largest products of each row: on a GPU by partial sorts, on a CPU in lists.

A list only takes what is above its bound, and almost no product is. So a product costs little more than a comparison,
where a partial sort costs ten times that.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from ._arrays import map_blocks

ROOM = 2  # entries of a list, in multiples of those that are kept when it is full
ROWS_AT_ONCE = 128  # per task of a thread
COMPARED = 32  # products that are compared at once; few of these groups hold one that is above its bound

# Columns of a tile: on a GPU, 32 MiB in half precision, which fits into a large cache; on a CPU, of those that are
# sorted until each row has a list, and of those that are then compared with its bound.
_TILE, _SORTED, _LISTED = 16384, 1024, 4096

_INTEGERS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}  # positive floats have the order of their bits


def bits(products: Tensor) -> np.ndarray:
    """Bfloat16 or float32 products as integers of the same order; all negative ones are below all others."""
    return products.view(_INTEGERS[products.dtype]).numpy()


def product_in(memory: Tensor, queries: Tensor, rows: Tensor) -> Tensor:
    """(b, M) products of ``queries`` (b, D) with ``rows`` (M, D), in the first elements of ``memory``.

    New memory for each product would cost a sixth of the time of a large search on a CPU.
    """
    tile = memory[: len(queries) * len(rows)].view(len(queries), len(rows))
    return torch.mm(queries, rows.T, out=tile)


class Lists(NamedTuple):
    """The largest products of each row so far, and the bound below which products were left out.

    Attributes:
        scores: (N, room) the bits of products, as integers; the first ``filled`` count.
        columns: (N, room) int32.
        filled: (N,) int64.
        bounds: (N,) like the scores, none negative.
        kept: how many stay in a full list.
    """

    scores: np.ndarray
    columns: np.ndarray
    filled: np.ndarray
    bounds: np.ndarray
    kept: int

    @classmethod
    def empty(cls, kept: int, bounds: Tensor) -> Lists:
        integers = bits(bounds)
        room = len(integers), ROOM * kept
        return cls(
            np.empty(room, integers.dtype), np.empty(room, np.int32), np.zeros(len(integers), np.int64), integers, kept
        )

    @classmethod
    def of(cls, products: Tensor, columns: Tensor) -> Lists:
        """Lists that hold (N, kept) products, all positive, of (N, kept) columns."""
        kept = products.shape[1]
        lists = cls.empty(kept, products.amin(1))
        lists.scores[:, :kept], lists.columns[:, :kept] = bits(products), columns.numpy()
        lists.filled[:] = kept
        return lists

    def read(self, rows: slice, precision: torch.dtype, own: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Float32 scores (b, m), descending, with -inf for filler; their columns (b, m), and the bounds (b,).

        If ``own``, each row comes first in its list, with the score inf.
        """
        scores, bounds = (torch.from_numpy(array[rows]).view(precision).float() for array in (self.scores, self.bounds))
        columns = torch.from_numpy(self.columns[rows]).long()
        scores.masked_fill_(torch.arange(scores.shape[1]) >= torch.from_numpy(self.filled[rows])[:, None], -torch.inf)
        if own:
            scores = torch.cat([scores.new_full((len(scores), 1), torch.inf), scores], 1)
            columns = torch.cat([torch.arange(rows.start, rows.stop)[:, None], columns], 1)
        scores, order = scores.sort(1, descending=True)
        return scores, columns.gather(1, order).masked_fill_(scores == -torch.inf, 0), bounds


class Largest:
    """The ``count`` largest products of each query with the columns that were added, tile by tile.

    On a CPU they are in lists as soon as each query has so many positive ones.
    """

    def __init__(self, queries: Tensor, count: int) -> None:
        self.count = count
        self._on_cpu = queries.device.type == "cpu"
        self._dtype = queries.dtype
        self._products = torch.empty(len(queries), 0, device=queries.device)
        self._columns = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
        self._lists: Lists | None = None

    @property
    def width(self) -> int:
        """How many columns to add next."""
        if not self._on_cpu:
            return _TILE
        return _SORTED if self._lists is None else _LISTED

    @property
    def widest(self) -> int:
        return _LISTED if self._on_cpu else _TILE

    def add(self, tile: Tensor, first: int) -> None:
        """Products (b, width) with the columns from ``first`` on."""
        if self._lists is not None:
            map_blocks(_add_to_rows, len(tile), bits(tile), first, self._lists, block=ROWS_AT_ONCE)
            return
        best = tile.topk(min(self.count, tile.shape[1]), sorted=False)
        # Merged at once, because keeping the best of all tiles to the end fragments the heap over gigabytes.
        columns = torch.cat([self._columns, best.indices + first], 1)
        products = torch.cat([self._products, best.values.float()], 1)
        self._products, order = products.topk(min(self.count, products.shape[1]))
        self._columns = columns.gather(1, order)
        if self._on_cpu and self._products.shape[1] == self.count and (self._products > 0).all():
            self._lists = Lists.of(self._products.to(self._dtype), self._columns)

    def read(self) -> tuple[Tensor, Tensor]:
        """(b, count) float32 products, descending, and their columns; -inf marks filler."""
        if self._lists is None:
            return self._products, self._columns
        products, columns, _ = self._lists.read(slice(None), self._dtype, own=False)
        return products[:, : self.count], columns[:, : self.count]


@njit(nogil=True, cache=True)
def _add_to_rows(start, stop, tile, first_column, lists):
    """Adds the products of a tile to the lists [start, stop) of its rows."""
    for row in range(start, stop):
        add_to_row(tile[row], row, -1, first_column, lists)


@njit(nogil=True, cache=True)
def add_to_row(products, row, own, first_column, lists):
    """Adds products to the list of a row, except that with the column ``own``."""
    for first in range(0, len(products), COMPARED):
        part = products[first : first + COMPARED]
        bound = lists.bounds[row]
        found = False
        for i in range(len(part)):
            found |= part[i] > bound
        if found:
            for i in range(len(part)):
                column = first_column + first + i
                if part[i] > lists.bounds[row] and column != own:
                    add(row, part[i], column, lists)


@njit(nogil=True, cache=True)
def add(row, score, column, lists):
    """Adds to a list, of which only the ``kept`` largest stay when it is full; its bound is then the least of these."""
    count = lists.filled[row]
    if count == lists.scores.shape[1]:
        lists.bounds[row] = _largest_first(lists.scores[row], lists.columns[row], lists.kept)
        count = lists.kept
    if score > lists.bounds[row]:
        lists.scores[row, count] = score
        lists.columns[row, count] = column
        count += 1
    lists.filled[row] = count


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
