"""Candidates for the nearest neighbours of all rows, from half of the products: that of rows i and j serves both.

The rows are searched in panels. A panel is multiplied with its own rows and all later ones; a product goes to a list of
its row, and to a list of its column. A list only takes what is above its bound, and almost no product is: a bound is
first estimated on a sample of the columns, and rises when the list is full. So a product costs little more than two
comparisons, where a partial sort costs ten times that.
"""

from __future__ import annotations

import torch
from numba import njit
from torch import Tensor

from ._arrays import map_blocks
from ._candidates import Found
from ._largest import COMPARED, ROOM, ROWS_AT_ONCE, Lists, add, add_to_row, bits, product_in
from .screen import Screen, candidates_for

_LEAST, _MOST = 4096, 500_000  # rows: a sample of fewer says little, and the lists of more take a gigabyte
_LONGEST = 512  # candidates of a row
_COLUMNS = 4096  # of a tile
_SAMPLED = 32  # one of so many columns is in the sample
_COLUMNS_AT_ONCE = 512  # per task of a thread


class SymmetricProducts:
    """Fills two lists of each row: of the columns in a range of its own, and of all others.

    Args:
        rounded: (N, D) unit rows in bfloat16 or float32, on the CPU.
        begins, ends: (N,) int64, the range [begin, end) of each row. Rows in one range have the same range.
        kept: lengths of the two lists.

    Attributes:
        inside, outside: the lists; they are complete for the rows that were advanced over.
    """

    def __init__(self, rounded: Tensor, begins: Tensor, ends: Tensor, kept: tuple[int, int]) -> None:
        self.rounded = rounded
        self.ranges = begins.numpy(), ends.numpy()
        self.next = 0
        self.inside, self.outside = map(Lists.empty, kept, self._estimated_bounds(begins, ends, kept))

    def _estimated_bounds(self, begins: Tensor, ends: Tensor, kept: tuple[int, int]) -> list[Tensor]:
        """For each kind of list (N,) products, at least 0, that about as many others exceed as it has room for.

        A row for which they are too few is settled by a later search.
        """
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(self.rounded), generator=generator)[: len(self.rounded) // _SAMPLED]
        sample = self.rounded[chosen]
        bounds: list[list[Tensor]] = [[], []]
        for rows in torch.arange(len(self.rounded)).split(_COLUMNS):
            products = self.rounded[rows] @ sample.T
            within = (chosen >= begins[rows, None]) & (chosen < ends[rows, None])
            for kind, counted in enumerate((within, ~within)):
                place = -(-ROOM * kept[kind] // _SAMPLED)
                best = products.masked_fill(~counted, -torch.inf).topk(max(place, 1)).values[:, -1]
                bounds[kind].append(best.clamp_(min=0).abs_())  # no -0, whose bits are those of a negative integer
        return [torch.cat(parts) for parts in bounds]

    def advance(self, queries: Tensor) -> slice:
        """Completes the lists of the next rows, which must be ``queries`` (b,).

        Raises:
            ValueError: they are not.
        """
        start, stop = self.next, self.next + len(queries)
        if int(queries[0]) != start or int(queries[-1]) != stop - 1:
            raise ValueError(f"the rows from {start} on come next, got those from {int(queries[0])} on")
        self.next = stop
        arrays = (*self.ranges, self.inside, self.outside)
        memory = self.rounded.new_empty(len(queries) * min(_COLUMNS, len(self.rounded)))
        for first in range(start, len(self.rounded), _COLUMNS):
            last = min(first + _COLUMNS, len(self.rounded))
            tile = bits(product_in(memory, self.rounded[start:stop], self.rounded[first:last]))
            map_blocks(_add_to_rows, len(tile), tile, start, first, *arrays, block=ROWS_AT_ONCE)
            others = max(first, stop)  # the panel's own columns are its rows, which have them already
            if others < last:
                tile = tile[:, others - first :]
                map_blocks(_add_to_columns, tile.shape[1], tile, start, others, *arrays, block=_COLUMNS_AT_ONCE)
        return slice(start, stop)


class SymmetricScreen(Screen):
    """``Screen`` for all rows in ascending order: each call continues with the rows after those of the last one."""

    def __init__(self, precision: torch.dtype, rows: Tensor, scale: Tensor, k: int) -> None:
        super().__init__(precision, rows, scale, k)
        whole = torch.full((len(rows),), len(rows))
        self.products = SymmetricProducts(self.rounded, torch.zeros_like(whole), whole, (self.count, 0))

    def __call__(self, queries: Tensor) -> Found:
        found = self.products.inside.read(self.products.advance(queries), self.rounded.dtype, own=True)
        scores, candidates, bounds = found
        return self.settle(queries, scores, candidates, self.k, torch.full_like(queries, len(self.rows)), bounds)


def suits(rows: Tensor, queries: Tensor, *lengths: int) -> bool:
    """Whether lists of these lengths can be found in this way: for all rows in order, neither few nor too many."""
    return (
        rows.device.type == "cpu"
        and _LEAST <= len(rows) <= _MOST
        and max(map(candidates_for, lengths)) <= _LONGEST
        and torch.equal(queries, torch.arange(len(rows)))
    )


@njit(nogil=True, cache=True)
def _add_to_rows(start, stop, tile, first_row, first_column, begins, ends, inside, outside):
    """Adds the products of a tile to the lists of its rows [start, stop)."""
    for r in range(start, stop):
        row = first_row + r
        begin, end = _range_in_tile(row, first_column, tile.shape[1], begins, ends)
        add_to_row(tile[r, :begin], row, row, first_column, outside)
        add_to_row(tile[r, begin:end], row, row, first_column + begin, inside)
        add_to_row(tile[r, end:], row, row, first_column + end, outside)


@njit(nogil=True, cache=True)
def _add_to_columns(start, stop, tile, first_row, first_column, begins, ends, inside, outside):
    """Adds the products of a tile to the lists of its columns [start, stop)."""
    first_column += start
    near = inside.bounds[first_column : first_column + stop - start].copy()  # close to each other in memory
    far = outside.bounds[first_column : first_column + stop - start].copy()
    for r in range(tile.shape[0]):
        products, row = tile[r, start:stop], first_row + r
        begin, end = _range_in_tile(row, first_column, stop - start, begins, ends)
        _add_to_each(products[:begin], row, first_column, far[:begin], outside)
        _add_to_each(products[begin:end], row, first_column + begin, near[begin:end], inside)
        _add_to_each(products[end:], row, first_column + end, far[end:], outside)


@njit(nogil=True, cache=True)
def _range_in_tile(row, first_column, num_columns, begins, ends):
    begin = min(max(begins[row] - first_column, 0), num_columns)
    return begin, min(max(ends[row] - first_column, begin), num_columns)


@njit(nogil=True, cache=True)
def _add_to_each(products, row, first_column, bounds, lists):
    """Adds the products of one row to the lists of their columns."""
    for first in range(0, len(products), COMPARED):
        part, bound = products[first : first + COMPARED], bounds[first : first + COMPARED]
        found = False
        for i in range(len(part)):
            found |= part[i] > bound[i]
        if found:
            for i in range(len(part)):
                if part[i] > bound[i]:
                    column = first_column + first + i
                    add(column, part[i], row, lists)
                    bound[i] = lists.bounds[column]
