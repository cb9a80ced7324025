"""Charts as inline SVG, which take their fonts and colours of text from the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Point = tuple[float, float]

# Colours that stay apart for colour-blind readers (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
WIDTH, HEIGHT = 400, 228
LEFT, RIGHT, TOP, BOTTOM = 44, 392, 12, 190  # of the area in which is drawn


def line_chart(curves: Mapping[str, Sequence[Point]], *, title: str, marks: Mapping[float, str] | None = None) -> str:
    """A figure with a line for each curve over epochs, and a dot with its value at each point.

    Args:
        curves: name -> its points, in the order of x; at least one point in all.
        title: above the chart.
        marks: x -> the text beside a vertical line there.
    """
    points = [point for curve in curves.values() for point in curve]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    span = max(last - first, 1)
    ys = ticks(min(y for _, y in points), max(y for _, y in points))

    def place(x: float, y: float) -> Point:
        across = (x - first) / span
        up = (y - ys[0]) / (ys[-1] - ys[0])
        return round(LEFT + across * (RIGHT - LEFT), 1), round(BOTTOM - up * (BOTTOM - TOP), 1)

    parts = _grid({tick: place(first, tick)[1] for tick in ys})
    epochs = [tick for tick in ticks(first, last, whole=True) if first <= tick <= last]
    parts += [_text(place(x, ys[0])[0], BOTTOM + 16, f"{x:g}", "middle") for x in epochs]
    parts.append(_text((LEFT + RIGHT) / 2, HEIGHT - 6, "epoch", "middle"))
    for x, name in (marks or {}).items():
        at = place(x, ys[0])[0]
        parts.append(f'<line class="mark" x1="{at}" y1="{TOP}" x2="{at}" y2="{BOTTOM}"/>')
        parts.append(_text(at + 4, TOP + 9, name, "start"))
    legend = []
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        legend.append(f'<span><i style="background:{colour}"></i>{escape(name)}</span>')
        corners = " ".join(f"{x},{y}" for x, y in (place(*point) for point in curve))
        parts.append(f'<polyline points="{corners}" stroke="{colour}"/>')
        for x, y in curve:
            across, down = place(x, y)
            tip = escape(f"{name}, epoch {x:g}: {y:.4g}")
            parts.append(f'<circle cx="{across}" cy="{down}" r="2.5" fill="{colour}"><title>{tip}</title></circle>')
    return _figure(title, parts, f'<p class="legend">{"".join(legend)}</p>')


def bar_chart(bars: Sequence[tuple[str, int]], *, title: str, x_label: str) -> str:
    """A figure with a bar for each (name, height), at least one, and its height above it."""
    ys = ticks(0, max(height for _, height in bars))
    scale = (BOTTOM - TOP) / ys[-1]
    step = (RIGHT - LEFT) / len(bars)
    parts = _grid({tick: round(BOTTOM - tick * scale, 1) for tick in ys})
    for number, (name, height) in enumerate(bars):
        x, tall = LEFT + number * step, round(height * scale, 1)
        tip = escape(f"{name} images: {height} clusters")
        parts.append(
            f'<rect x="{x + step * 0.1:.1f}" y="{BOTTOM - tall:.1f}" width="{step * 0.8:.1f}" height="{tall}" '
            f'fill="{COLOURS[0]}"><title>{tip}</title></rect>'
        )
        if number % math.ceil(len(bars) / 8) == 0:
            parts.append(_text(x + step / 2, BOTTOM + 16, name, "middle"))
    parts.append(_text((LEFT + RIGHT) / 2, HEIGHT - 6, x_label, "middle"))
    return _figure(title, parts)


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Two to about eight round numbers, from one not above ``low`` to one not below ``high``."""
    rough = max(high - low, abs(high) * 1e-6, 1e-9) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    step = max(step, 1) if whole else step
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    return [step * index for index in range(first, last + 1)]


def _grid(heights: Mapping[float, float]) -> list[str]:
    return [
        f'<line class="grid" x1="{LEFT}" y1="{y}" x2="{RIGHT}" y2="{y}"/>' + _text(LEFT - 6, y + 4, f"{tick:g}", "end")
        for tick, y in heights.items()
    ]


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _figure(title: str, parts: Sequence[str], below_title: str = "") -> str:
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{below_title}'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )
