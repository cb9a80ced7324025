"""Charts drawn by matplotlib: PNG files, inline SVG for a page, and sentences that describe them.

matplotlib is imported only when something is drawn. A drawing depends only on the arguments, not on a user's settings,
the installed fonts or the time.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from ..files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]

# Colours that colour-blind readers can distinguish (Okabe and Ito), each with a marker for those who see no colours.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKS = "osD^vPX*"
SOFT = "#57606A"  # colour of texts around the drawing
PICTURE, PICTURE_TEXT = (960, 540), 14  # size of a PNG and of its text, pixels
CHART, CHART_TEXT = (400, 210), 11  # size of a chart in a page, without its legend, and of its text, pixels
LEGEND_LINE = 17  # pixels
DOTS = 72  # a pixel is a point, so that all sizes are in pixels
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "text.parse_math": False,  # a name may hold any characters
    "axes.autolimit_mode": "round_numbers",
    "figure.constrained_layout.w_pad": 0.08,  # inches
    "axes.xmargin": 0,
    "axes.ymargin": 0,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.edgecolor": "#DDDDDD",
    "axes.labelcolor": SOFT,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 1,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "ytick.major.size": 0,
}
SVG = "http://www.w3.org/2000/svg"

EPOCH = "epoch"


@dataclass(frozen=True)
class Chart:
    """A chart for a page.

    Attributes:
        title: its subject.
        words: sentences that describe what it shows.
        svg: the drawing, an ``<svg>`` element whose texts are escaped; a page can contain several.
    """

    title: str
    words: str
    svg: str


def draw_curves(
    curves: Mapping[str, Sequence[Sequence[Point]]],
    path: str | Path,
    *,
    title: str,
    x_label: str,
    y_label: str,
    log: bool = False,
) -> None:
    """Draws each curve's runs as thin lines and their mean as a thick one; the legend is sorted by the last value.

    The PNG also contains a description of the picture in words, as its ``Description``.

    Args:
        curves: name -> one sequence of (x, y) per run; the mean at an x is over the runs that have it.
        path: the PNG file.
        title, x_label, y_label: texts.
        log: both axes are logarithmic, and every point of a mean is marked.

    Raises:
        ValueError: there is no point to draw, or a point is not positive on logarithmic axes.
    """
    drawn = [(readable(name), runs, mean_curve(runs)) for name, runs in curves.items() if any(runs)]
    points = [point for _, runs, _ in drawn for run in runs for point in run]
    if not points:
        raise ValueError("no curve has a point to draw")
    if log and min(map(min, points)) <= 0:
        raise ValueError("logarithmic axes need positive values")
    with _figure(PICTURE, PICTURE_TEXT) as (figure, axes):
        if log:
            axes.set_xscale("log")
            axes.set_yscale("log")
        lines = []
        for (name, runs, mean), colour, mark in zip(drawn, cycle(COLOURS), cycle(MARKS), strict=False):
            for run in filter(None, runs):
                axes.plot(*zip(*run, strict=True), color=colour, alpha=0.5, linewidth=1)
            look = {"marker": mark if log else "", "markersize": 8, "linewidth": 3, "clip_on": False}
            lines += axes.plot(*zip(*mean, strict=True), color=colour, label=name, **look)
        axes.set_title(title, loc="left", color="black")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _label_ticks(axes, whole=not log)
        figure.legend(handles=sorted(lines, key=lambda line: -line.get_ydata()[-1]), loc="outside right upper")
        words = _sentence(((name, mean) for name, _, mean in drawn), lambda x: f"at {x:,.10g} {x_label}")
        about = {"Title": title, "Description": f"{y_label} over {x_label}: {words}", "Software": None}
        figure.savefig(path, dpi=DOTS, metadata=about)


def draw_panels(
    panels: Mapping[str, Mapping[str, Sequence[Point]]], path: str | Path, *, title: str, x_label: str
) -> None:
    """Draws panels side by side, two in a row, with the same curves in each; they share the legend and the x axis.

    The PNG, written completely or not at all, also contains a description of each panel in words.

    Args:
        panels: title -> name -> its points, at least one, in the order of x; the names are those of the first panel.
        path: the PNG file.
        title, x_label: texts.

    Raises:
        OSError: it cannot be written.
    """
    rows = math.ceil(len(panels) / 2)
    with _figure((PICTURE[0], rows * CHART[1] + 4 * LEGEND_LINE), CHART_TEXT) as (figure, single):
        single.remove()
        grid = figure.subplots(rows, 2, sharex=True, squeeze=False).ravel()
        for axes, (name, curves) in zip(grid, panels.items(), strict=False):
            for (label, curve), colour, mark in zip(curves.items(), cycle(COLOURS), cycle(MARKS), strict=False):
                look = {"color": colour, "marker": mark, "markersize": 4, "linewidth": 1.8, "clip_on": False}
                axes.plot(*zip(*curve, strict=True), label=readable(label), **look)
            axes.set_title(name, loc="left", color="black")
            axes.set_ylim(bottom=0)
            _label_ticks(axes, whole=False)
        for axes in grid[len(panels) :]:
            axes.remove()
        for axes in grid[-2:]:
            axes.set_xlabel(x_label)
        figure.suptitle(title, x=0.01, ha="left")
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside right upper")
        words = [f"{name}: {_sentence(curves.items(), lambda x: f'at {x:,.10g}')}" for name, curves in panels.items()]
        with replacing(str(path)) as file:
            about = {"Title": title, "Description": f"Over {x_label}. {' '.join(words)}", "Software": None}
            figure.savefig(file, format="png", dpi=DOTS, metadata=about)


def mean_curve(runs: Sequence[Sequence[Point]]) -> list[Point]:
    """The mean y at each x, in the order of x."""
    values: dict[float, list[float]] = {}
    for run in runs:
        for x, y in run:
            values.setdefault(x, []).append(y)
    return [(x, sum(ys) / len(ys)) for x, ys in sorted(values.items())]


def line_chart(
    curves: Mapping[str, Sequence[Point]],
    *,
    title: str,
    marks: Mapping[float, str] | None = None,
    x_label: str = EPOCH,
) -> Chart:
    """A line for each curve, with a marker and its value at each point.

    Args:
        curves: name -> its points, at least one, in the order of x; an epoch of 0 is before training.
        title: above the chart.
        marks: x -> what begins there, between two epochs, or what is there; drawn as a vertical line.
        x_label: what x is.
    """
    over_epochs = x_label == EPOCH
    named = [(readable(name), curve) for name, curve in curves.items()]
    columns = max(1, CHART[0] // (7 * max(len(name) for name, _ in named) + 40))
    height = CHART[1] + LEGEND_LINE * math.ceil(len(named) / columns)
    tips = {
        f"curve{number}": [f"{name}, {x_label} {x:g}: {y:.4g}" for x, y in curve]
        for number, (name, curve) in enumerate(named)
    }
    with _figure((CHART[0], height), CHART_TEXT, salt=title) as (figure, axes):
        for key, (name, curve), colour, mark in zip(tips, named, cycle(COLOURS), cycle(MARKS), strict=False):
            look = {"color": colour, "marker": mark, "markersize": 4, "linewidth": 1.8, "clip_on": False}
            axes.plot(*zip(*curve, strict=True), label=name, gid=key, **look)
        first, last = min(curve[0][0] for _, curve in named), max(curve[-1][0] for _, curve in named)
        axes.set_xlim(first, max(last, first + 1) if over_epochs else last)
        for x, name in (marks or {}).items():
            axes.axvline(x, color=SOFT, linewidth=1, linestyle="--")
            axes.text(x, 1.02, name, transform=axes.get_xaxis_transform(), ha="center", va="bottom", color=SOFT)
        axes.set_xlabel(x_label)
        _label_ticks(axes, whole=over_epochs)
        figure.legend(loc="outside upper left", ncols=columns, borderaxespad=0, handlelength=1.6, columnspacing=1)
        svg = _inline(figure, tips)
    if over_epochs:
        words = _sentence(named, lambda x: f"after epoch {x:g}" if x else "before training")
        notes = [f" {name.capitalize()} began after epoch {math.floor(x)}." for x, name in (marks or {}).items()]
    else:
        words = _sentence(named, lambda x: f"at {x_label} {x:g}")
        notes = [f" {name.capitalize()}: {x_label} {x:g}." for x, name in (marks or {}).items()]
    return Chart(title, words + "".join(notes), svg)


def bar_chart(bars: Sequence[tuple[str, int]], *, title: str, unit: str, things: str) -> Chart:
    """A bar for each (size, number of things of that size), at least one.

    Args:
        bars: in the order of size; the first and the last number are positive.
        title: above the chart.
        unit: the unit of the sizes.
        things: what is counted.
    """
    sizes, counts = zip(*bars, strict=True)
    tips = {f"bar{place}": [f"{size} {unit}: {count} {things}"] for place, (size, count) in enumerate(bars)}
    with _figure(CHART, CHART_TEXT, salt=title) as (figure, axes):
        for key, bar in zip(tips, axes.bar(range(len(bars)), counts, color=COLOURS[0]), strict=True):
            bar.set_gid(key)
        axes.set_xlim(-0.6, len(bars) - 0.4)
        axes.set_xlabel(unit)
        axes.set_ylabel(things)
        _label_ticks(axes, whole=True)
        shown = range(0, len(bars), math.ceil(len(bars) / 8))
        axes.set_xticks(shown, [sizes[place] for place in shown])
        svg = _inline(figure, tips)
    size, count = max(bars, key=lambda bar: bar[1])
    words = f"{count:,} of {sum(counts):,} {things} have {size} {unit}"
    words += f", the most common size; the smallest have {sizes[0]}, the largest {sizes[-1]}." if bars[1:] else "."
    return Chart(title, words, svg)


def readable(name: str) -> str:
    """A file name as printable text, for any bytes."""
    return os.fsencode(name).decode(errors="replace")


@contextmanager
def _figure(size: tuple[int, int], text: int, *, salt: str | None = None) -> Iterator[tuple[Figure, Axes]]:
    """A figure of ``size`` pixels, across and down, with texts of ``text`` pixels, and its axes.

    Finish it within the block, which sets matplotlib's settings. SVGs with different ``salt`` have different ids.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    settings = STYLE | {"font.size": text, "axes.titlesize": text + 3, "svg.hashsalt": salt}
    settings |= {f"{part}.labelsize": text for part in ("axes", "xtick", "ytick")} | {"legend.fontsize": text}
    with matplotlib.style.context(settings, after_reset=True):
        figure = Figure((size[0] / DOTS, size[1] / DOTS), dpi=DOTS, layout="constrained")
        yield figure, figure.add_subplot()


def _label_ticks(axes: Axes, *, whole: bool) -> None:
    """Plain numbers at the major ticks, without minor ticks; with ``whole``, x ticks only at whole numbers."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.minorticks_off()
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    if whole:
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True))


def _inline(figure: Figure, tips: Mapping[str, Sequence[str]]) -> str:
    """The figure as an ``<svg>`` element that fills the width of its place in the page.

    Args:
        tips: id of an artist -> the tooltip of each of its markers; of an artist without markers, that of the whole.
    """
    file = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", dpi=DOTS, transparent=True, metadata=nothing)
    root = ElementTree.fromstring(file.getvalue())
    for group in root.iter(f"{{{SVG}}}g"):
        texts = tips.get(group.get("id", ""), ())
        marks = list(group.iter(f"{{{SVG}}}use")) or [group]
        for mark, text in zip(marks if texts else (), texts, strict=True):
            ElementTree.SubElement(mark, f"{{{SVG}}}title").text = text
    referred = set(re.findall(rb'(?:href="#|url\(#)([^")]+)', file.getvalue()))
    for element in root.iter():
        if element.get("id", "").encode() not in referred:
            element.attrib.pop("id", None)
    for name in ("width", "height", "version"):
        del root.attrib[name]
    # A style element would apply to the whole page, which has the same rules in its own.
    for parent in root.iter(f"{{{SVG}}}defs"):
        for style in parent.findall(f"{{{SVG}}}style"):
            parent.remove(style)
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    return ElementTree.tostring(root, encoding="unicode")


def _sentence(curves: Iterable[tuple[str, Sequence[Point]]], place: Callable[[float], str]) -> str:
    """One sentence that describes the course of each named curve; ``place`` puts an x into words."""
    return "; ".join(f"{name} {_course(curve, place)}" for name, curve in curves) + "."


def _course(curve: Sequence[Point], place: Callable[[float], str]) -> str:
    (first, start), (last, end) = curve[0], curve[-1]
    ends = {_number(start), _number(end)}
    if len(curve) == 1:
        return f"stood at {_number(start)} {place(first)}"
    if len(ends) == 1:
        words = f"stood at {_number(start)} {place(first)} and {place(last)}"
    else:
        verb = "rose" if end > start else "fell"
        words = f"{verb} from {_number(start)} {place(first)} to {_number(end)} {place(last)}"
    between = sorted((start, end))
    for word, (x, y) in (("highest", max(curve, key=_height)), ("lowest", min(curve, key=_height))):
        if not between[0] <= y <= between[1] and _number(y) not in ends:
            words += f", {word} at {_number(y)} {place(x)}"
    return words


def _height(point: Point) -> float:
    return point[1]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
