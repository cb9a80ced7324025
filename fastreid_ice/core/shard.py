"""One process's share of work that several do together: rows are computed in parts and exchanged."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Process ``rank`` of ``size`` that compute together; by default one alone, which computes everything.

    Attributes:
        rank: number of this process, in [0, size).
        size: how many processes there are.
        gather: takes a value from each process, called in all of them at once, and returns the list of these values in
            order of rank.
    """

    rank: int = 0
    size: int = 1
    gather: Callable[[Any], list[Any]] = lambda value: [value]

    @classmethod
    def of(cls, group: dist.ProcessGroup | None = None) -> Shard:
        """This process's place in a ``torch.distributed`` group that exchanges CPU memory (gloo); the world by default.

        NumPy arrays inside gathered values travel as they are, neither pickled nor padded: a process holds its own and
        the received ones, no further copy.
        """
        return cls(dist.get_rank(group), dist.get_world_size(group), partial(_gather, group=group))

    def rows(self, num_rows: int) -> slice:
        """This process's contiguous part of ``num_rows`` rows, all parts of about the same size."""
        return slice(num_rows * self.rank // self.size, num_rows * (self.rank + 1) // self.size)

    def merge(self, mine: list[T]) -> list[T]:
        """Results of items that were dealt out in turn, ``items[rank::size]``, in the order of the items."""
        parts = self.gather(mine)
        return [parts[item % self.size][item // self.size] for item in range(sum(map(len, parts)))]


ALONE = Shard()


def _gather(value: T, group: dist.ProcessGroup | None) -> list[T]:
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    raw = [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]
    outlines: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(outlines, (pickled, [len(buffer) for buffer in raw]), group=group)

    values = []
    for rank, (outline, sizes) in enumerate(outlines):
        mine = rank == dist.get_rank(group)
        arrays = raw if mine else [np.empty(size, np.uint8) for size in sizes]
        source = rank if group is None else dist.get_global_rank(group, rank)
        for array in arrays:
            if len(array):
                dist.broadcast(_tensor(array), source, group=group)
        values.append(value if mine else pickle.loads(outline, buffers=arrays))
    return values


def _tensor(array: np.ndarray) -> torch.Tensor:
    """The memory of ``array`` as a tensor; also of a read-only one, which is sent and never written."""
    return torch.from_dlpack(array) if array.flags.writeable else torch.tensor(array)
