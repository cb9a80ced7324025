"""What a run did, epoch by epoch: evaluation of the start, and the table at the end."""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict

from fastreid.engine.train_loop import HookBase
from fastreid.evaluation.testing import flatten_results_dict
from tabulate import tabulate

logger = logging.getLogger(f"fastreid.{__name__}")


class EvaluateStart(HookBase):
    """Evaluates the weights that training starts from; the figures are logged as ``start/mAP`` and so on."""

    def before_epoch(self) -> None:
        trainer = self.trainer
        if trainer.epoch > 0:
            return
        logger.info("Evaluating the weights that training starts from")
        results = flatten_results_dict(trainer.test(trainer.cfg, trainer.model))
        trainer.storage.iter = trainer.iter
        trainer.storage.put_scalars(**{f"start/{name}": value for name, value in results.items()}, smoothing_hint=False)


class EpochTable(HookBase):
    """Closes a run with a table over its epochs, those before a resume included."""

    def after_train(self) -> None:
        path = os.path.join(self.trainer.cfg.OUTPUT_DIR, "metrics.json")
        if os.path.isfile(path):
            tests = self.trainer.cfg.DATASETS.TESTS
            logger.info(
                "Epochs:\n%s", epoch_table(path, self.trainer.iters_per_epoch, tests[0] if len(tests) > 1 else "")
            )


def epoch_table(path: str, iters_per_epoch: int, dataset: str = "") -> str:
    """A table with a row per epoch out of a metrics.json.

    Args:
        path: the file; where an epoch was run again after a resume, the later lines count.
        iters_per_epoch: iterations from one clustering to the next.
        dataset: whose figures to show where several are evaluated.
    """
    prefix = f"{dataset}/" if dataset else ""
    epochs: dict[int, dict[str, float]] = defaultdict(dict)
    with open(path) as lines:
        for line in lines:
            scalars = json.loads(line)
            epochs[scalars["iteration"] // iters_per_epoch].update(scalars)
    start = epochs.get(0, {})
    rows = []
    if f"start/{prefix}mAP" in start:
        rows.append(["start", None, None, None, start[f"start/{prefix}mAP"], start[f"start/{prefix}Rank-1"]])
    for epoch, scalars in sorted(epochs.items()):
        noise = scalars.get("cluster/noise_share")
        rows.append(
            [
                epoch + 1,
                scalars.get("cluster/number"),
                None if noise is None else 100 * noise,
                scalars.get("cluster/ari"),
                scalars.get(f"{prefix}mAP"),
                scalars.get(f"{prefix}Rank-1"),
            ]
        )
    headers = ["epoch", "clusters", "noise %", "ARI", "mAP", "rank-1"]
    return tabulate(rows, headers, floatfmt=("", ".0f", ".1f", ".3f", ".1f", ".1f"), missingval="")
