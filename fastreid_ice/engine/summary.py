"""What a run logs about its epochs: the stage of each, the evaluation at the start, and the table at the end."""

from __future__ import annotations

import logging

from fastreid.engine.train_loop import HookBase
from fastreid.evaluation.testing import flatten_results_dict

from ..config import Stage
from ..reporting import describe_evaluations, epoch_table, read_stage
from .clock import Stopwatch

logger = logging.getLogger(f"fastreid.{__name__}")


class AnnounceStage(HookBase):
    """Logs before each epoch which stage it belongs to, also as the scalar ``stage``.

    Args:
        number: the number of this stage, from 1.
        total: the number of stages.
    """

    def __init__(self, number: int, total: int) -> None:
        self.number = number
        self.total = total

    def before_epoch(self) -> None:
        trainer = self.trainer
        logger.info("Stage %d of %d, epoch %d", self.number, self.total, trainer.epoch + 1)
        trainer.storage.iter = trainer.iter
        trainer.storage.put_scalar("stage", self.number, smoothing_hint=False)


class EvaluateStart(HookBase):
    """Evaluates the weights that training starts from; the metrics are logged as ``start/mAP`` and so on."""

    def before_epoch(self) -> None:
        trainer = self.trainer
        if trainer.epoch > 0:
            return
        logger.info("Evaluating the weights that training starts from")
        watch = Stopwatch()
        results = flatten_results_dict(trainer.evaluate())
        scalars = {f"start/{name}": value for name, value in results.items()} | watch.scalars("start")
        trainer.storage.iter = trainer.iter
        trainer.storage.put_scalars(**scalars, smoothing_hint=False)


class EpochTable(HookBase):
    """Ends a run with a table of its epochs, including those before a resume, and its last and best evaluation."""

    def after_train(self) -> None:
        stage = Stage(self.trainer.cfg)
        if stage.metrics.is_file() and stage.metrics.stat().st_size > 0:
            logger.info("Epochs:\n%s", epoch_table(stage))
            if evaluations := describe_evaluations(read_stage(stage), stage.cfg.TEST.ENCODER):
                logger.info("%s", evaluations)
