"""fast-reid's writers of scalars, for runs that are interrupted and resumed."""

from __future__ import annotations

import json
import os

from fastreid.engine.hooks import PeriodicWriter
from fastreid.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter, get_event_storage

from ..config import Stage
from ..files import explaining_writes, replacing

LOG_PERIOD = 200  # iterations, as in fast-reid


class ScalarWriter(PeriodicWriter):
    """Writes to log, metrics.json and TensorBoard, from the iteration where training starts or continues.

    What an earlier attempt wrote about later steps is removed from metrics.json and hidden in TensorBoard, so that each
    step counts once. It runs before the checkpointer, so that the scalars of a saved epoch are complete.

    Args:
        period: iterations between two lines; there is also one at the end of an epoch.
    """

    def __init__(self, period: int = LOG_PERIOD) -> None:
        super().__init__([], period)

    def before_train(self) -> None:
        trainer = self.trainer
        path = self._path()
        with explaining_writes(path):
            rewind(path, trainer.start_iter)
            self._writers = [
                _LossPrinter(trainer.max_iter),
                JSONWriter(path),
                TensorboardXWriter(trainer.cfg.OUTPUT_DIR, purge_step=trainer.start_iter),
            ]

    def after_step(self) -> None:
        with explaining_writes(self._path()):
            super().after_step()

    def after_epoch(self) -> None:
        with explaining_writes(self._path()):
            super().after_epoch()

    def after_train(self) -> None:
        with explaining_writes(self._path()):
            super().after_train()

    def _path(self) -> str:
        return str(Stage(self.trainer.cfg).metrics)


class _LossPrinter(CommonMetricPrinter):
    """fast-reid's line of losses in the log, with epochs from 1."""

    def write(self) -> None:
        storage = get_event_storage()
        storage.epoch += 1
        try:
            super().write()
        finally:
            storage.epoch -= 1


def rewind(path: str, iteration: int) -> None:
    """Removes from a metrics.json the lines of ``iteration`` and later, and lines that a kill has cut off."""
    if not os.path.isfile(path):
        return
    with open(path, "rb") as file:
        lines = file.readlines()
    kept = [line for line in lines if _is_before(line, iteration)]
    if len(kept) < len(lines):
        with replacing(path) as file:
            file.writelines(kept)


def _is_before(line: bytes, iteration: int) -> bool:
    try:
        return line.endswith(b"\n") and json.loads(line)["iteration"] < iteration
    except ValueError:
        return False
