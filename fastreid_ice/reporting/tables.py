"""The epochs of a run: reading its metrics.json, and tables of it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence

from fastreid.config import CfgNode
from tabulate import tabulate

from ..config import Stage

ENCODERS = {"": "", "online ": "online/", "momentum ": "momentum/"}  # prefix of a header: prefix of a scalar's name
HEADERS = ["epoch", "clusters", "noise %", "ARI", *(f"{of}{name}" for of in ENCODERS for name in ("mAP", "rank-1"))]
FORMATS = ("", ".0f", ".1f", ".3f", *(2 * len(ENCODERS) * (".1f",)))
CHOSEN = "chosen on the test set"  # how the best epoch is found, in all texts about it


def epoch_table(stage: Stage) -> str:
    """A table with a row per epoch, from the metrics.json of the stage."""
    return _table(_rows(read_stage(stage)), HEADERS, FORMATS)


def stage_table(stages: Sequence[Stage]) -> str:
    """The tables of all stages as one, from the metrics.json of each."""
    rows = []
    for number, stage in enumerate(stages, 1):
        rows += [[number, *row] for row in _rows(read_stage(stage))]
    return _table(rows, ["stage", *HEADERS], ("", *FORMATS))


def read_stage(stage: Stage) -> dict[int, dict[str, float]]:
    """``read_epochs`` of the metrics.json of the stage; empty if there is none."""
    if not stage.metrics.is_file():
        return {}
    return read_epochs(str(stage.metrics), stage.cfg.SOLVER.ITERS_PER_EPOCH, first_test_set(stage.cfg))


def evaluations(epochs: dict[int, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The scalars of the "last" and the "best" evaluation, and the ``epoch`` of each, from 1; empty without one."""
    evaluated = {epoch: scalars for epoch, scalars in epochs.items() if "best/mAP" in scalars}
    if not evaluated:
        return {}
    epoch, last = max(evaluated.items())
    best = {name.removeprefix("best/"): value for name, value in last.items() if name.startswith("best/")}
    return {"last": last | {"epoch": epoch + 1}, "best": best}


def describe_evaluations(epochs: dict[int, dict[str, float]], encoder: str) -> str:
    """The last and the best evaluation in words, empty if nothing was evaluated.

    Args:
        epochs: from ``read_epochs``.
        encoder: the one that chooses the best.
    """
    parts = []
    for name, scalars in evaluations(epochs).items():
        metrics = [
            f"{of or f'{encoder} '}mAP {scalars[f'{prefix}mAP']:.1f}, rank-1 {scalars[f'{prefix}Rank-1']:.1f}"
            for of, prefix in ENCODERS.items()
            if f"{prefix}mAP" in scalars
        ]
        parts.append(f"{name.capitalize()} evaluation, epoch {scalars['epoch']:.0f}: {', '.join(metrics)}.")
    return " ".join([*parts, f"The best is {CHOSEN}, as in the papers."]) if parts else ""


def read_epochs(path: str, iters_per_epoch: int, dataset: str = "") -> dict[int, dict[str, float]]:
    """The scalars of each epoch, from 0, in a metrics.json.

    Args:
        path: the file; if an epoch was run again after a resume, the later lines count. An incomplete last line, left
            by a kill during a write, is ignored.
        iters_per_epoch: iterations from one clustering to the next.
        dataset: the one whose metrics are called mAP, Rank-1 and so on, if several are evaluated.
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
    if "cluster/number" in epochs.get(last - 1, ()) and "cluster/number" not in epochs[last]:
        # An evaluation after the last iteration: fast-reid logs it as if a further epoch had begun. In a run with
        # labels no epoch clusters.
        epochs[last - 1].update(epochs.pop(last))
    return dict(sorted(epochs.items()))


def first_test_set(cfg: CfgNode) -> str:
    """The prefix of the metrics that choose the best epoch, empty if only one dataset is evaluated."""
    return cfg.DATASETS.TESTS[0] if len(cfg.DATASETS.TESTS) > 1 else ""


def _table(rows: list[list], headers: Sequence[str], formats: Sequence[str]) -> str:
    """The rows as text, without empty columns, such as mAP if nothing was evaluated."""
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
        rows.append(["start", None, None, None, *_metrics(start, "start/")])
    for epoch, scalars in epochs.items():
        noise = scalars.get("cluster/noise_share")
        rows.append(
            [
                epoch + 1,
                scalars.get("cluster/number"),
                None if noise is None else 100 * noise,
                scalars.get("cluster/ari"),
                *_metrics(scalars),
            ]
        )
    return rows


def _metrics(scalars: dict[str, float], prefix: str = "") -> list[float | None]:
    """mAP and rank-1 of the encoder that chooses, and of the other one under its name."""
    return [scalars.get(f"{prefix}{of}{name}") for of in ENCODERS.values() for name in ("mAP", "Rank-1")]
