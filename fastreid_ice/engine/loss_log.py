"""A log of the losses of each step that does not make the host wait for the device."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import torch
from fastreid.utils.events import EventStorage
from torch import Tensor


class LossLog:
    """Keeps the losses of each step until they have arrived from the device, then puts them into fast-reid's storage.

    fast-reid reads every loss in every step, which leaves the device idle, and gathers them over the processes. Here
    they are copied in one tensor while the device continues. The losses already refer to the batch of all processes, so
    each process keeps its own.
    """

    def __init__(self) -> None:
        self._steps: deque[_StepLosses] = deque()

    def add(self, iteration: int, losses: dict[str, Tensor], data_time: float) -> None:
        """Adds the scalars of a step, each on the device where it was computed, and the loading time of its batch."""
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        arrived = None
        if values.is_cuda:
            values = values.to("cpu", non_blocking=True)  # into pinned memory
            arrived = torch.cuda.Event()
            arrived.record()
        self._steps.append(_StepLosses(iteration, tuple(losses), values, arrived, data_time))

    def store(self, storage: EventStorage, *, wait: bool) -> None:
        """Puts the losses that have arrived into ``storage``, each at its iteration; with ``wait``, all losses.

        On the CPU all have always arrived.

        Raises:
            FloatingPointError: a loss is not finite; the message says which, and at which iteration.
        """
        now = storage.iter
        while self._steps and self._steps[0].has_arrived(wait):
            step = self._steps.popleft()
            losses = dict(zip(step.names, step.values.tolist(), strict=True))
            broken = [f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value)]
            if broken:
                raise NotFinite(" and ".join(broken), step.iteration)
            storage.iter = step.iteration
            storage.put_scalars(data_time=step.data_time, total_loss=sum(losses.values()), **losses)
        storage.iter = now


class NotFinite(FloatingPointError):
    """A loss is infinite or NaN.

    Args:
        what: each such loss and its value.
        iteration: where they occurred.
    """

    def __init__(self, what: str, iteration: int) -> None:
        super().__init__(f"{what} at iteration {iteration}")
        self.iteration = iteration


@dataclass(frozen=True)
class _StepLosses:
    iteration: int
    names: tuple[str, ...]
    values: Tensor  # on the host, valid once ``arrived`` has happened
    arrived: torch.cuda.Event | None
    data_time: float

    def has_arrived(self, wait: bool) -> bool:
        if self.arrived is None:
            return True
        if wait:
            self.arrived.synchronize()
        return self.arrived.query()
