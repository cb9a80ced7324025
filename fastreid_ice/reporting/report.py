"""One HTML page about a run: its curves, examples of its clusters, and a search over all images.

The page contains everything that it shows, including pictures, and loads nothing.
"""

from __future__ import annotations

import base64
import gzip
import json
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fastreid.engine.train_loop import HookBase

from ..config import Run, Stage
from ..errors import InputError
from ..files import owned_folder
from ..progress import progress
from .chart import Chart, Point, bar_chart, line_chart, readable
from .doubts import describe_doubt
from .labels import PseudoLabels
from .pages import NAME_LENGTH, common_folder, render, short_names, write_text
from .radii import radii_chart
from .sheets import Picture, contact_sheets, picture_of, shown, small_pictures, tile_size
from .tables import describe_evaluations, evaluations, read_stage

TEMPLATE = "report.html"

NAMES = {"number": "clusters", "ari": "ARI", "nmi": "NMI"}  # curves that are not named like their scalars
# Title of a chart, a pattern that fully matches the scalars it shows, and the factor they are multiplied by.
CHARTS = (
    ("Clusters", "cluster/(number)", 1),
    ("Noise and churn, in %", "cluster/(noise|churn)(?:_share)?", 100),
    ("Radius that CLUSTER.AUTO_EPS chose", "cluster/(eps)", 1),
    ("Forbidden pairs in one cluster, and clusters that were cut", "cluster/(violations|repaired)", 1),
    ("People whom CORRECTIONS joined, and tracks that gave way", "cluster/corrections_(joined|overruled)", 1),
    ("Losses", "(?:loss_(.+)|(total)_loss)", 1),
    ("Evaluation, in %", "((?!start/|best/).*(?:mAP|Rank-1))", 1),
    ("Agreement with the true identities", "cluster/(ari|nmi)", 1),
)

logger = logging.getLogger(f"fastreid.{__name__}")

Curves = dict[str, list[Point]]


class Fact(NamedTuple):
    """A number at the head of the page, with an explanation if it needs one."""

    name: str
    value: str
    note: str = ""


class Figures(NamedTuple):
    """A table: the names of its columns, and rows with an epoch and a cell for each column."""

    columns: list[str]
    rows: list[tuple[str, list[str]]]


class Tile(NamedTuple):
    """An image on a sheet: texts, empty if unknown, and its picture as a data URI, None if it cannot be read."""

    name: str
    camera: str
    distance: str
    picture: str | None


def write_report(run: Run) -> Path:
    """Writes ``report.html``, one page about all stages of a run, in its folder: under a temporary name, then renamed.

    Returns:
        The page.

    Raises:
        InputError: the files of the run cannot be read, or the page cannot be written.
    """
    epochs, marks, encoder = _read_epochs(run.stages)
    curves = [(title, found) for title, *which in CHARTS if (found := _curves(epochs, *which))]
    path = run.labels
    clustering = PseudoLabels.read(path) if path else PseudoLabels((), (), np.empty(0, np.int64), np.empty(0))
    sheets = contact_sheets(clustering, seed=run.stages[0].cfg.SEED)
    rows = shown(sheets)
    pictures = {row: picture_of(clustering.paths[row]) for row in progress(rows, "Reading pictures for the report")}
    small, complete = small_pictures(clustering, without=pictures)
    names, common = short_names(clustering.paths)
    cameras = [readable(camera) for camera in clustering.cameras]
    last = run.stages[-1].cfg
    page = render(
        TEMPLATE,
        title=readable(run.folder.resolve().name),
        losses=last.MODEL.LOSSES.NAME,
        clusterer=last.CLUSTER.NAME,
        datasets=last.DATASETS.NAMES,
        images=common,
        doubt=describe_doubt(clustering.labels, last),
        facts=_facts(curves, clustering, evaluations(epochs)),
        evaluations=describe_evaluations(epochs, encoder),
        charts=[
            *(line_chart(found, title=title, marks=marks) for title, found in curves),
            *_radii(run.stages[-1]),
            *_sizes(clustering),
        ],
        figures=_figures(curves),
        lost=sum(picture is None for picture in pictures.values()),
        shown=len(rows),
        sheets=sheets,
        tiles={
            row: Tile(names[row], cameras[row], _rounded(clustering.distances[row]), picture and picture.uri)
            for row, picture in pictures.items()
        },
        tile_size=_tile_size([picture for picture in pictures.values() if picture]),
        complete=complete,
        pictured=sum(picture is not None for picture in pictures.values()) + len(small),
        total=len(names),
        index=_packed(names, cameras, clustering, small),
        corrections=readable(str(run.corrections)),
        name_length=NAME_LENGTH,
    )
    write_text(run.report, page)
    logger.info("Report: %s", run.report)
    return run.report


class WriteReport(HookBase):
    """Writes the report when training ends, also after an error, in the main process, if any epoch was completed.

    One of several processes may be ended before that: see ``write_left_report``.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.iters_per_epoch:
            _try_report(self.run)


def write_left_report(run: Run) -> None:
    """Writes the report of a run whose processes were ended, from the files that it has written, if any.

    If another run has begun to write to the folder, nothing is written.
    """
    if run.labels and any(stage.metrics.is_file() for stage in run.stages):
        with suppress(InputError), owned_folder(str(run.folder)):
            _try_report(run)


def _try_report(run: Run) -> None:
    """Writes the report; an error here is only a warning in the log, so that it does not change how a run ends."""
    try:
        write_report(run)
    except Exception as error:
        logger.warning("No report: %s", error)


def _read_epochs(stages: Sequence[Stage]) -> tuple[dict[int, dict[str, float]], dict[float, str], str]:
    """The scalars of each epoch, counted from 0 over all stages; where stages after the first begin; and the encoder
    that chose the best epoch of the last stage that was evaluated."""
    epochs: dict[int, dict[str, float]] = {}
    marks: dict[float, str] = {}
    encoder = ""
    for number, stage in enumerate(stages, 1):
        try:
            found = read_stage(stage)
        except (KeyError, ValueError) as error:
            raise InputError(f"{stage.metrics} is not a file of scalars as a run writes it: {error}") from error
        if evaluations(found):
            encoder = stage.cfg.TEST.ENCODER
        done = len(epochs)
        if done and found:
            marks[done + 0.5] = f"stage {number}"
        for count, scalars in enumerate(found.values(), done):
            if "best/epoch" in scalars:  # of this stage
                scalars["best/epoch"] += done
            epochs[count] = scalars
    return epochs, marks, encoder


def _curves(epochs: Mapping[int, Mapping[str, float]], pattern: str, factor: float) -> Curves:
    """Name -> (epochs done, value) of the scalars that match, named after what a group of the pattern matches."""
    curves: Curves = {}
    for epoch, scalars in epochs.items():
        for key, value in scalars.items():
            match = re.fullmatch(pattern, key)
            if match and math.isfinite(value):
                name = next(filter(None, match.groups()))
                name = NAMES.get(name, name.replace("_", " "))
                if epoch == 0 and f"start/{key}" in scalars:
                    curves[name] = [(0, factor * scalars[f"start/{key}"])]
                curves.setdefault(name, []).append((epoch + 1, factor * value))
    return curves


def _facts(
    charts: Sequence[tuple[str, Curves]], clustering: PseudoLabels, evaluated: Mapping[str, Mapping[str, float]]
) -> list[Fact]:
    labels, total = clustering.labels, max(len(clustering.labels), 1)
    sizes = np.unique(labels[labels >= 0], return_counts=True)[1]
    epochs = max((x for _, group in charts for curve in group.values() for x, _ in curve), default=0)
    return [
        Fact("images", f"{len(labels):,}"),
        Fact("cameras", str(len(set(clustering.cameras) - {""}) or "not known")),
        Fact("clusters", f"{len(sizes):,}"),
        Fact("noise", f"{100 * np.count_nonzero(labels < 0) / total:.1f} %"),
        Fact("largest cluster", f"{sizes.max(initial=0):,}"),
        Fact("epochs", f"{epochs:.0f}"),
        *(
            Fact(f"{name} mAP", f"{scalars['mAP']:.1f} %", f"epoch {scalars['epoch']:.0f}")
            for name, scalars in evaluated.items()
        ),
    ]


def _radii(stage: Stage) -> list[Chart]:
    """What ``CLUSTER.AUTO_EPS`` compared at the last clustering; none without it."""
    return [radii_chart(stage.radii)] if stage.cfg.CLUSTER.AUTO_EPS and stage.radii.is_file() else []


def _sizes(clustering: PseudoLabels) -> list[Chart]:
    """A histogram of cluster sizes, with two bars per doubling; none without clusters."""
    sizes = np.unique(clustering.labels[clustering.labels >= 0], return_counts=True)[1]
    if not len(sizes):
        return []
    edges = [edge for power in range(int(sizes.max()).bit_length()) for edge in (2**power, 3 * 2**power // 2)]
    edges = [*np.unique(edges), 2 ** int(sizes.max()).bit_length()]
    counts = np.histogram(sizes, edges)[0]
    first, last = np.flatnonzero(counts)[[0, -1]]
    bars = [
        (str(edges[i]) if edges[i + 1] - edges[i] == 1 else f"{edges[i]}–{edges[i + 1] - 1}", int(counts[i]))
        for i in range(first, last + 1)
    ]
    return [bar_chart(bars, title="Clusters by size", unit="images", things="clusters")]


def _figures(charts: Sequence[tuple[str, Curves]]) -> Figures:
    """All points of the charts as a table."""
    curves = {name: dict(curve) for _, group in charts for name, curve in group.items()}
    epochs = sorted({epoch for curve in curves.values() for epoch in curve})
    cells = [[f"{curve[epoch]:.4g}" if epoch in curve else "" for curve in curves.values()] for epoch in epochs]
    return Figures(
        [readable(name) for name in curves], [(f"{epoch:g}", row) for epoch, row in zip(epochs, cells, strict=True)]
    )


def _tile_size(pictures: Sequence[Picture]) -> tuple[int, int]:
    """Width and height in pixels of the pictures on sheets: the median shape of these."""
    return tile_size(float(np.median([picture.aspect for picture in pictures])) if pictures else 0.5)


def _packed(names: Sequence[str], cameras: Sequence[str], clustering: PseudoLabels, pictures: Mapping[int, str]) -> str:
    """All images for the page's search, with the pictures of some, and the medoids: gzipped JSON in base64."""
    folder = os.path.join(common_folder(clustering.paths), "") if names else ""
    odd = {row: path for row, path in enumerate(clustering.paths) if path != folder + names[row]}
    known = sorted(set(cameras) - {""}, key=lambda name: (not name.isdecimal(), len(name) * name.isdecimal(), name))
    number = {name: i for i, name in enumerate(known)} | {"": -1}
    index = {
        "names": names,
        "cameraNames": known,
        "cameras": [number[camera] for camera in cameras],
        "labels": clustering.labels.tolist(),
        "pictures": pictures,
        "folder": folder,
        "odd": odd,  # paths that are not the folder and the name, such as those with bytes that are not UTF-8
        "medoids": clustering.medoids(),
        "distances": [None if math.isnan(value) else round(value, 3) for value in clustering.distances.tolist()],
    }
    return base64.b64encode(gzip.compress(json.dumps(index, separators=(",", ":")).encode(), mtime=0)).decode()


def _rounded(distance: float) -> str:
    return "" if math.isnan(distance) else f"{distance:.3f}"
