"""Evaluation during training, and the best weights of a run."""

from __future__ import annotations

import math

from fastreid.engine.train_loop import HookBase
from fastreid.evaluation.testing import flatten_results_dict
from fastreid.utils import comm

from .clock import Stopwatch


class EvaluateEpochs(HookBase):
    """Evaluates after every ``period`` epochs and after the last; saves ``model_best.pth`` if it is the best so far.

    The best has the highest ``metric``, fast-reid's mean of mAP and rank-1; of equal ones it is the first. It is saved
    at once, before the scalars and the checkpoint of the epoch, with its epoch (from 0, as in every checkpoint) and
    metric. Each evaluation also logs the best so far, as ``best/epoch`` (from 1), ``best/mAP`` and so on. Checkpoints
    contain these values: a resumed run continues from the best at its checkpoint.

    Args:
        period: in epochs; 0 for only the last one.
        dataset: the one whose metric chooses, if several are evaluated.
    """

    def __init__(self, period: int, dataset: str = "") -> None:
        self.period = period
        self.metric = f"{dataset}/metric" if dataset else "metric"
        self.best: dict[str, float] = {}

    def state_dict(self) -> dict:
        return {"best": self.best}

    def load_state_dict(self, state: dict) -> None:
        self.best = state["best"]

    def after_epoch(self) -> None:
        trainer = self.trainer
        done = trainer.epoch + 1
        if done < trainer.max_epoch and not (self.period and done % self.period == 0):
            return
        watch = Stopwatch()
        trainer._last_eval_results = results = trainer.evaluate()
        if comm.is_main_process():
            figures = {name: float(value) for name, value in flatten_results_dict(results).items()}
            if figures[self.metric] > self.best.get(self.metric, -math.inf):
                self.best = {"epoch": done, **figures}
                trainer.checkpointer.save("model_best", epoch=trainer.epoch, metric=figures[self.metric])
            best = {f"best/{name}": value for name, value in self.best.items()}
            trainer.storage.put_scalars(**figures, **best, **watch.scalars("evaluation"), smoothing_hint=False)
        comm.synchronize()
