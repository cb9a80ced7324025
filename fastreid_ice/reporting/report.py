"""One HTML page about a run: its curves, its clusters to look at, and a search over all images.

The page holds all that it shows, pictures included, and loads nothing.
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
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from fastreid.engine.train_loop import HookBase

from ..config import Run, Stage
from ..errors import InputError
from ..files import owned_folder, replacing
from ..progress import progress
from .labels import PseudoLabels
from .sheets import Group, Sheet, contact_sheets, shown, thumbnail
from .svg import Point, bar_chart, line_chart
from .tables import describe_evaluations, evaluations, read_stage

TEMPLATE = Path(__file__).with_name("report.html")

NAMES = {"number": "clusters", "ari": "ARI", "nmi": "NMI"}  # of curves whose scalars are named otherwise
# Title of a chart, which scalars it shows (a whole match), and what they are multiplied by.
CHARTS = (
    ("Clusters", "cluster/(number)", 1),
    ("Noise and churn, in %", "cluster/(noise|churn)(?:_share)?", 100),
    ("Losses", "(?:loss_(.+)|(total)_loss)", 1),
    ("Evaluation, in %", "((?!start/|best/).*(?:mAP|Rank-1))", 1),
    ("Agreement with the true identities", "cluster/(ari|nmi)", 1),
)

logger = logging.getLogger(f"fastreid.{__name__}")

Curves = dict[str, list[Point]]


def write_report(run: Run) -> Path:
    """Writes ``report.html``, one page about all stages of a run, in its folder: under another name, then renamed.

    Returns:
        The page.

    Raises:
        InputError: what the run has left cannot be read, or the page cannot be written.
    """
    epochs, marks, encoder = _read_epochs(run.stages)
    charts = [(title, curves) for title, *which in CHARTS if (curves := _curves(epochs, *which))]
    path = run.labels
    clustering = PseudoLabels.read(path) if path else PseudoLabels((), (), np.empty(0, np.int64), np.empty(0))
    sheets = contact_sheets(clustering, seed=run.stages[0].cfg.SEED)
    rows = shown(sheets)
    pictures = {row: thumbnail(clustering.paths[row]) for row in progress(rows, "Reading pictures for the report")}
    names, common = _short_names(clustering.paths)
    last = run.stages[-1].cfg
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=_escape(run.folder.resolve().name),
        what=_escape(f"{', '.join(last.MODEL.LOSSES.NAME)}; {last.CLUSTER.NAME} on {', '.join(last.DATASETS.NAMES)}"),
        images=_escape(common),
        facts=_facts(charts, clustering, evaluations(epochs)),
        evaluations=_escape(describe_evaluations(epochs, encoder)),
        charts="".join(line_chart(curves, title=title, marks=marks) for title, curves in charts) + _sizes(clustering),
        table=_table(charts),
        lost=_lost(sum(picture is None for picture in pictures.values()), len(rows)),
        sheets="".join(_sheet(sheet, clustering, names, pictures) for sheet in sheets),
        index=_packed(clustering, names),
    )
    try:
        with replacing(str(run.report)) as file:
            file.write(page.encode(errors="surrogateescape"))
    except OSError as error:
        raise InputError(f"{run.report}: {error.strerror}") from error
    logger.info("Report: %s", run.report)
    return run.report


class WriteReport(HookBase):
    """Writes the report when training ends, well or not, in the main process; nothing where no epoch was completed.

    One of several processes may be ended before it comes to that: see :func:`write_left_report`.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.iters_per_epoch:
            _try_report(self.run)


def write_left_report(run: Run) -> None:
    """Writes the report of a run whose processes were ended, out of what it has left, if that is anything.

    Where another run has begun to write to the folder, it is left alone.
    """
    if run.labels and any(stage.metrics.is_file() for stage in run.stages):
        with suppress(InputError), owned_folder(str(run.folder)):
            _try_report(run)


def _try_report(run: Run) -> None:
    """How a run ends does not hang on its report: what goes wrong here is a warning in the log."""
    try:
        write_report(run)
    except Exception as error:
        logger.warning("No report: %s", error)


def _read_epochs(stages: Sequence[Stage]) -> tuple[dict[int, dict[str, float]], dict[float, str], str]:
    """The scalars of each epoch, counted from 0 through all stages; where stages after the first begin; and the encoder
    that chose the best of the last stage that was evaluated."""
    epochs: dict[int, dict[str, float]] = {}
    marks: dict[float, str] = {}
    encoder = ""
    for number, stage in enumerate(stages, 1):
        try:
            found = read_stage(stage)
        except (KeyError, ValueError) as error:
            raise InputError(f"{stage.metrics} is no file of scalars as a run writes it: {error}") from error
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
    """Name -> (epochs done, value) of the scalars that match, named by what a group of the pattern matches."""
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
) -> str:
    labels, total = clustering.labels, max(len(clustering.labels), 1)
    sizes = np.unique(labels[labels >= 0], return_counts=True)[1]
    facts = {
        "images": f"{len(labels):,}",
        "cameras": len(set(clustering.cameras) - {""}) or "not known",
        "clusters": f"{len(sizes):,}",
        "noise": f"{100 * np.count_nonzero(labels < 0) / total:.1f} %",
        "largest cluster": f"{sizes.max(initial=0):,}",
    }
    curves = {name: curve for _, group in charts for name, curve in group.items()}
    facts["epochs"] = int(max((x for curve in curves.values() for x, _ in curve), default=0))
    for name, scalars in evaluated.items():
        facts[f"{name} mAP"] = f"{scalars['mAP']:.1f} % <small>epoch {scalars['epoch']:.0f}</small>"
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())


def _sizes(clustering: PseudoLabels) -> str:
    """A histogram of cluster sizes, two bars to each doubling."""
    sizes = np.unique(clustering.labels[clustering.labels >= 0], return_counts=True)[1]
    if not len(sizes):
        return ""
    edges = [edge for power in range(int(sizes.max()).bit_length()) for edge in (2**power, 3 * 2**power // 2)]
    edges = [*np.unique(edges), 2 ** int(sizes.max()).bit_length()]
    counts = np.histogram(sizes, edges)[0]
    first, last = np.flatnonzero(counts)[[0, -1]]
    bars = [
        (str(edges[i]) if edges[i + 1] - edges[i] == 1 else f"{edges[i]}–{edges[i + 1] - 1}", int(counts[i]))
        for i in range(first, last + 1)
    ]
    return bar_chart(bars, title="Clusters by size", x_label="images in a cluster")


def _table(charts: Sequence[tuple[str, Curves]]) -> str:
    """All points of the charts as rows of a table."""
    curves = {name: dict(curve) for _, group in charts for name, curve in group.items()}
    head = "".join(f"<th>{_escape(name)}</th>" for name in ("epoch", *curves))
    epochs = sorted({epoch for curve in curves.values() for epoch in curve})
    body = "".join(
        f"<tr><th>{epoch:g}</th>"
        + "".join(f"<td>{curve[epoch]:.4g}</td>" if epoch in curve else "<td></td>" for curve in curves.values())
        + "</tr>"
        for epoch in epochs
    )
    return f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"


def _lost(count: int, total: int) -> str:
    return f'<p class="warning">{count} of the {total} images shown are gone or cannot be read.</p>' if count else ""


def _sheet(sheet: Sheet, clustering: PseudoLabels, names: Sequence[str], pictures: Mapping[int, str | None]) -> str:
    def tile(row: int) -> str:
        camera, distance = clustering.cameras[row], clustering.distances[row]
        words = [f"cam {camera}" if camera else "", "" if np.isnan(distance) else f"{distance:.3f}"]
        name, picture = _escape(names[row]), pictures[row]
        image = f'<img src="{picture}" alt="{name}">' if picture else '<div class="missing">gone or broken</div>'
        caption = "".join(f"<span>{_escape(word)}</span>" for word in words)
        return f'<figure data-row="{row}" title="{name}">{image}<figcaption>{caption}</figcaption></figure>'

    def block(group: Group) -> str:
        name, query = ("Noise", "noise") if group.label < 0 else (f"Cluster {group.label}", str(group.label))
        return (
            f'<div class="group"><h3><button type="button" data-cluster="{query}">{name}</button> '
            f'{group.caption}</h3><div class="tiles">{"".join(tile(int(row)) for row in group.images)}</div></div>'
        )

    groups = "".join(block(group) for group in sheet.groups) or "<p>There is none.</p>"
    return f'<section class="sheet"><h2>{sheet.title}</h2><p>{sheet.rule}</p>{groups}</section>'


def _packed(clustering: PseudoLabels, names: Sequence[str]) -> str:
    """All images for the page's search: gzipped JSON in base64."""
    cameras = sorted(
        set(clustering.cameras) - {""}, key=lambda name: (not name.isdecimal(), len(name) * name.isdecimal(), name)
    )
    number = {name: i for i, name in enumerate(cameras)} | {"": -1}
    index = {
        "names": [_text(name) for name in names],
        "cameraNames": [_text(camera) for camera in cameras],
        "cameras": [number[camera] for camera in clustering.cameras],
        "labels": clustering.labels.tolist(),
        "distances": [None if math.isnan(value) else round(value, 3) for value in clustering.distances.tolist()],
    }
    return base64.b64encode(gzip.compress(json.dumps(index, separators=(",", ":")).encode(), mtime=0)).decode()


def _short_names(paths: Sequence[str]) -> tuple[list[str], str]:
    """The paths below the folder that they have in common, and this folder."""
    if not paths:
        return [], ""
    common = os.path.commonpath({os.path.dirname(path) for path in paths})
    return [os.path.relpath(path, common) for path in paths], common


def _text(name: str) -> str:
    """A file name as text that can be shown, whatever its bytes."""
    return os.fsencode(name).decode(errors="replace")


def _escape(name: str) -> str:
    return escape(_text(name))
