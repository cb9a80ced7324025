"""The mAP on Market-1501 over the time that it takes, and how soon a recipe reaches the mAP of another."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from fastreid_ice import InputError
from fastreid_ice.reporting.chart import draw_curves

from . import market

CLOCKS = {
    "seconds": "wall seconds",
    "processor_seconds": "processor seconds",
}


class Evaluated(NamedTuple):
    """An evaluation, and the seconds of each of ``CLOCKS`` until then, without and with evaluations."""

    mAP: float
    training: dict[str, float]
    total: dict[str, float]


Course = Sequence[Evaluated]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    market.add_arguments(parser, output="logs/time_to_accuracy")
    parser.add_argument(
        "--target",
        type=float,
        metavar="MAP",
        help="the mAP to reach, in percent; default: the last of the first method, or of the first --beside",
    )
    parser.add_argument(
        "--beside",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="records of runs of other programs, in the form of docs/results",
    )


def check(args: argparse.Namespace) -> None:
    market.check(args)
    for path in args.beside:
        if not path.is_file():
            raise argparse.ArgumentError(None, f"--beside: no file {str(path)!r}")


def run(args: argparse.Namespace) -> None:
    beside = {path.stem: [read_course(json.loads(path.read_text()), str(path))] for path in args.beside}
    market.run(args, {"TEST.EVAL_PERIOD": 1, "TEST.BEFORE_TRAINING": True})
    ours: dict[str, list[Course]] = {}
    file = args.output / "results.json"
    for record in json.loads(file.read_text()):
        ours.setdefault(record["name"], []).append(read_course(record, str(file)))
    courses = beside | ours
    first = next(iter(courses))
    target = args.target or statistics.mean(course[-1].mAP for course in courses[first])
    text = f"{course_table(courses)}\n\n{target_table(courses, target)}\n"
    (args.output / "time_to_accuracy.txt").write_text(text)
    print(f"\n{text}")
    for clock, label in CLOCKS.items():
        curves = {
            name: [[(point.training[clock], point.mAP) for point in course] for course in runs]
            for name, runs in courses.items()
        }
        draw_curves(
            curves, args.output / f"{clock}.png", title="Market-1501", x_label=f"{label} of training", y_label="mAP, %"
        )


def read_course(record: Mapping[str, Any], source: str) -> Course:
    """The evaluations of a run, from the start on, if it was evaluated.

    Args:
        record: of ``fastreid-ice bench``, see ``Trial.record``.
        source: names it in an error.

    Raises:
        InputError: the record has no evaluation, or not the time of every epoch.
    """
    epochs = record["epochs"]
    missing = [name for name in (f"{clock}/epoch" for clock in CLOCKS) if any(name not in epoch for epoch in epochs)]
    if missing:
        raise InputError(f"{source} has no {missing[0]} of every epoch: it was trained before these were recorded")
    evaluating = [
        {clock: sum(epoch.get(f"{clock}/{name}", 0) for name in ("start", "evaluation")) for clock in CLOCKS}
        for epoch in epochs
    ]
    total = {clock: list(accumulate(epoch[f"{clock}/epoch"] for epoch in epochs)) for clock in CLOCKS}
    outside = {clock: list(accumulate(epoch[clock] for epoch in evaluating)) for clock in CLOCKS}
    course = []
    if "start/mAP" in epochs[0]:
        zero, spent = dict.fromkeys(CLOCKS, 0.0), {clock: epochs[0].get(f"{clock}/start", 0.0) for clock in CLOCKS}
        course.append(Evaluated(epochs[0]["start/mAP"], zero, spent))
    for number, epoch in enumerate(epochs):
        if "mAP" in epoch:
            whole = {clock: total[clock][number] for clock in CLOCKS}
            training = {clock: whole[clock] - outside[clock][number] for clock in CLOCKS}
            course.append(Evaluated(epoch["mAP"], training, whole))
    if not course:
        raise InputError(f"{source} has no evaluation")
    return course


def reached(course: Course, target: float, clock: str) -> float | None:
    """Seconds of training until ``target``, on a straight line between two evaluations; None if it is not reached."""
    if course[0].mAP >= target:
        return 0.0
    for before, after in pairwise(course):
        if after.mAP >= target:
            share = (target - before.mAP) / (after.mAP - before.mAP)
            return before.training[clock] + share * (after.training[clock] - before.training[clock])
    return None


def course_table(courses: Mapping[str, Sequence[Course]]) -> str:
    """A row for each evaluation, means over the runs of a recipe."""
    rows = []
    for name, runs in courses.items():
        for points in zip(*runs, strict=True):
            cells = [
                statistics.mean(getattr(point, part)[clock] for point in points)
                for clock in CLOCKS
                for part in ("training", "total")
            ]
            rows.append([name, statistics.mean(point.mAP for point in points), *cells])
    headers = ["", "mAP", *(f"{label}{rest}" for label in CLOCKS.values() for rest in ("", " with evaluations"))]
    return tabulate(rows, headers, "pipe", floatfmt=["", ".1f", *4 * [".0f"]])


def target_table(courses: Mapping[str, Sequence[Course]], target: float) -> str:
    """How soon each recipe reaches the mAP, mean over its runs, and as a share of the first recipe's time."""
    rows: list[list[Any]] = []
    for name, runs in courses.items():
        row: list[Any] = [name]
        for position, clock in enumerate(CLOCKS):
            times = [reached(course, target, clock) for course in runs]
            mean = None if None in times else statistics.mean(times)
            base = rows[0][1 + 2 * position] if rows else mean
            row += [mean, mean / base if mean is not None and base else None]
        rows.append(row)
    headers = [f"until {target:.1f} mAP"]
    for label in CLOCKS.values():
        headers += [label, "share of the first"]
    return tabulate(rows, headers, "pipe", floatfmt=["", ".0f", ".2f", ".0f", ".2f"], missingval="not reached")
