"""What a run did, epoch by epoch: its metrics.json, and tables of it."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence

from fastreid.config import CfgNode
from tabulate import tabulate

HEADERS = ["epoch", "clusters", "noise %", "ARI", "mAP", "rank-1"]
FORMATS = ("", ".0f", ".1f", ".3f", ".1f", ".1f")


def epoch_table(path: str, iters_per_epoch: int, dataset: str = "") -> str:
    """A table with a row per epoch out of a metrics.json.

    Args:
        path: the file.
        iters_per_epoch: iterations from one clustering to the next.
        dataset: whose figures to show where several are evaluated.
    """
    return _table(_rows(read_epochs(path, iters_per_epoch, dataset)), HEADERS, FORMATS)


def stage_table(stages: list[CfgNode]) -> str:
    """The tables of all stages as one, out of the metrics.json that each has left."""
    rows = []
    for number, cfg in enumerate(stages, 1):
        if not os.path.isfile(metrics_file(cfg)):
            continue
        epochs = read_epochs(metrics_file(cfg), cfg.SOLVER.ITERS_PER_EPOCH, first_test_set(cfg))
        rows += [[number, *row] for row in _rows(epochs)]
    return _table(rows, ["stage", *HEADERS], ("", *FORMATS))


def read_epochs(path: str, iters_per_epoch: int, dataset: str = "") -> dict[int, dict[str, float]]:
    """The scalars of each epoch, from 0, out of a metrics.json.

    Args:
        path: the file; where an epoch was run again after a resume, the later lines count. A last line without an end,
            as a kill in the middle of a write leaves it, counts as not written.
        iters_per_epoch: iterations from one clustering to the next.
        dataset: whose figures are called mAP, Rank-1 and so on, where several are evaluated.
    """
    epochs: dict[int, dict[str, float]] = defaultdict(dict)
    with open(path) as lines:
        for line in lines:
            if not line.endswith("\n"):
                continue
            scalars = {
                name.replace(f"{dataset}/", "") if dataset else name: value for name, value in json.loads(line).items()
            }
            epochs[scalars["iteration"] // iters_per_epoch].update(scalars)
    last = max(epochs, default=0)
    if last > 0 and "cluster/number" not in epochs[last]:
        # An evaluation after the last iteration, which fast-reid logs as if a further epoch had begun.
        epochs[last - 1].update(epochs.pop(last))
    return dict(sorted(epochs.items()))


def metrics_file(cfg: CfgNode) -> str:
    """The file to which a run writes its scalars."""
    return os.path.join(cfg.OUTPUT_DIR, "metrics.json")


def first_test_set(cfg: CfgNode) -> str:
    """The prefix of the figures that choose the best epoch, empty where only one dataset is evaluated."""
    return cfg.DATASETS.TESTS[0] if len(cfg.DATASETS.TESTS) > 1 else ""


def _table(rows: list[list], headers: Sequence[str], formats: Sequence[str]) -> str:
    """The rows as text, without the columns that nothing is known of, such as mAP where nothing was evaluated."""
    columns = [
        (header, form, values)
        for header, form, *values in zip(headers, formats, *rows, strict=True)
        if not values or any(value is not None for value in values)
    ]
    headers, formats, values = zip(*columns, strict=True)
    return tabulate(zip(*values, strict=True), headers, floatfmt=formats, missingval="")


def _rows(epochs: dict[int, dict[str, float]]) -> list[list]:
    start = epochs.get(0, {})
    rows = []
    if "start/mAP" in start:
        rows.append(["start", None, None, None, start["start/mAP"], start["start/Rank-1"]])
    for epoch, scalars in epochs.items():
        noise = scalars.get("cluster/noise_share")
        rows.append(
            [
                epoch + 1,
                scalars.get("cluster/number"),
                None if noise is None else 100 * noise,
                scalars.get("cluster/ari"),
                scalars.get("mAP"),
                scalars.get("Rank-1"),
            ]
        )
    return rows
