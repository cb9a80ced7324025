"""How long the epochs of a run and their evaluations take, for anyone who compares recipes by time."""

from __future__ import annotations

import time

from fastreid.engine.train_loop import HookBase


class Stopwatch:
    """Measures from its creation. Processor seconds are those of all threads of this process, without its workers."""

    def __init__(self) -> None:
        self.wall, self.processor = time.perf_counter(), time.process_time()

    def scalars(self, name: str) -> dict[str, float]:
        """``seconds/name`` and ``processor_seconds/name`` up to now."""
        return {
            f"seconds/{name}": time.perf_counter() - self.wall,
            f"processor_seconds/{name}": time.process_time() - self.processor,
        }


class EpochClock(HookBase):
    """Logs ``seconds/epoch`` and ``processor_seconds/epoch``, counted from the end of the epoch before.

    They include extraction, clustering and the evaluations, which log theirs as ``seconds/evaluation`` and, before the
    first epoch, ``seconds/start``. It runs after the evaluation.
    """

    def before_train(self) -> None:
        self.watch = Stopwatch()

    def after_epoch(self) -> None:
        self.trainer.storage.put_scalars(**self.watch.scalars("epoch"), smoothing_hint=False)
        self.watch = Stopwatch()
