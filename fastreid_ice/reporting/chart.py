"""A line chart as a PNG, drawn with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .svg import ticks

Point = tuple[float, float]

# Colours that stay apart for colour-blind readers (Okabe and Ito), then grey.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]
SIZE, LEFT, RIGHT, TOP, BOTTOM = (960, 540), 70, 250, 66, 60
SCALE = 2  # drawn twice as large and then reduced, so that lines are smooth


def draw_curves(
    curves: Mapping[str, Sequence[Sequence[Point]]],
    path: str | Path,
    *,
    title: str,
    x_label: str,
    y_label: str,
    log: bool = False,
) -> None:
    """Draws each curve's runs as thin lines and their mean as a thick one, and names it where it ends.

    Args:
        curves: name -> one sequence of (x, y) per run; the mean is over the runs that have an x.
        path: where the PNG goes.
        title, x_label, y_label: texts.
        log: both axes are logarithmic, and every point of a mean is marked.

    Raises:
        ValueError: there is no point to draw, or one that is not positive on logarithmic axes.
    """
    means = {name: mean_curve(runs) for name, runs in curves.items() if any(runs)}
    points = [point for runs in curves.values() for run in runs for point in run]
    if not points:
        raise ValueError("no curve has a point to draw")
    xs, ys = zip(*points, strict=True)
    if log and min(*xs, *ys) <= 0:
        raise ValueError("logarithmic axes need positive values")
    x_ticks = decades(min(xs), max(xs)) if log else ticks(0, max(xs), whole=True)
    y_ticks = decades(min(ys), max(ys)) if log else ticks(min(ys), max(ys))
    width, height = SIZE

    def share(value: float, axis: Sequence[float]) -> float:
        """How far along the axis a value is, 0 at its first tick and 1 at its last."""
        value, first, last = (math.log10(v) if log else v for v in (value, axis[0], axis[-1]))
        return (value - first) / (last - first)

    def place(point: Point) -> Point:
        across, up = share(point[0], x_ticks), share(point[1], y_ticks)
        return LEFT + across * (width - LEFT - RIGHT), height - BOTTOM - up * (height - TOP - BOTTOM)

    image = Image.new("RGB", (width * SCALE, height * SCALE), "white")
    draw = ImageDraw.Draw(image)

    def text(at: Point, words: str, anchor: str, *, size: int = 14, colour: str = "#333333") -> None:
        font = ImageFont.load_default(size * SCALE)
        draw.text((at[0] * SCALE, at[1] * SCALE), words, colour, font, anchor=anchor)

    def line(points: Sequence[Point], colour: str, thickness: float) -> None:
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        draw.line(scaled, colour, round(thickness * SCALE), joint="curve")

    left, bottom = place((x_ticks[0], y_ticks[0]))
    right, top = place((x_ticks[-1], y_ticks[-1]))
    for tick in y_ticks:
        y = place((x_ticks[0], tick))[1]
        line([(left, y), (right, y)], "#DDDDDD", 1)
        text((left - 8, y), f"{tick:,.10g}", "rm")
    for tick in x_ticks:
        text((place((tick, y_ticks[0]))[0], bottom + 8), f"{tick:,.10g}", "mt")
    text((left, 14), title, "lt", size=17, colour="#000000")
    text((left, top - 8), y_label, "lb")
    text(((left + right) / 2, height - 12), x_label, "mb")

    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(means)}
    for name, colour in colours.items():
        for run in curves[name]:
            line([place(point) for point in run], _paler(colour), 1)
    for name, mean in means.items():
        line([place(point) for point in mean], colours[name], 2.5)
        for x, y in map(place, mean if log else ()):
            draw.ellipse([SCALE * edge for edge in (x - 4, y - 4, x + 4, y + 4)], colours[name])
    # Names beside the ends of their lines, pushed apart where lines end close to each other.
    at = float("-inf")
    for name in sorted(means, key=lambda name: -means[name][-1][1]):
        at = max(at + 20, place(means[name][-1])[1])
        text((right + 14, at), name, "lm", colour=colours[name])
    image.resize(SIZE, Image.Resampling.LANCZOS).save(path)


def mean_curve(runs: Sequence[Sequence[Point]]) -> list[Point]:
    """The mean y at each x, in the order of x."""
    values: dict[float, list[float]] = {}
    for run in runs:
        for x, y in run:
            values.setdefault(x, []).append(y)
    return [(x, sum(ys) / len(ys)) for x, ys in sorted(values.items())]


def decades(low: float, high: float) -> list[float]:
    """Powers of ten, at least two, from one not above ``low`` to one not below ``high``."""
    first = math.floor(math.log10(low))
    last = max(math.ceil(math.log10(high)), first + 1)
    return [10.0**power for power in range(first, last + 1)]


def _paler(colour: str) -> str:
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - (255 - channel) * 0.5):02x}" for channel in channels)
