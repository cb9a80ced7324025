"""The canvas of the synthetic data: filled shapes, identical to the pixel on every machine.

A canvas holds the number of a material at each fine pixel, and a palette with the colours of the materials. A picture
averages these colours over ``FINE`` x ``FINE`` blocks, which smooths the edges. Shapes are filled with integer
arithmetic: Pillow's polygons round in C floats, which compilers for other processors contract differently, and
numpy's sines differ between instruction sets. Python's own ``+ - * /`` and ``sqrt`` are the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

HEIGHT, WIDTH = 128, 64  # a finished crop, pixels
FINE = 3  # fine pixels per pixel and axis

PERSON, CAMERA, SHOT, PLACE, CROSSING = range(5)  # purposes of random streams: the second number of a key

Point = tuple[float, float]  # (x, y) in fine pixels, y downwards
# rows (H, 1), columns (1, W) -> bool (H, W): where the second colour shows
Pattern = Callable[[np.ndarray, np.ndarray], np.ndarray]

_SINE = tuple(round(4096 * math.sin(math.radians(degree))) / 4096 for degree in range(360))
CIRCLE = tuple((_SINE[(degree + 90) % 360], _SINE[degree]) for degree in range(0, 360, 30))


def sine(degrees: int) -> float:
    """Sine of whole degrees, rounded to 1/4096 so that it does not depend on the C library."""
    return _SINE[degrees % 360]


def cosine(degrees: int) -> float:
    """Cosine of whole degrees, rounded to 1/4096."""
    return _SINE[(degrees + 90) % 360]


def stream(*key: int) -> np.random.RandomState:
    """The random numbers of ``key``: a seed, PERSON or another purpose, and numbers, each in [0, 2**32).

    numpy guarantees that the streams of RandomState do not change.
    """
    return np.random.RandomState(list(key))


def pick(rng: np.random.RandomState, weights: dict):
    """One key of ``weights``, with a probability proportional to its whole-number weight."""
    ticket = rng.randint(sum(weights.values()))
    for choice, weight in weights.items():
        ticket -= weight
        if ticket < 0:
            return choice
    raise AssertionError("unreachable: the ticket is smaller than the sum of the weights")


class Canvas:
    """Materials painted one over another, back to front.

    ``light`` is +1 if the light comes from the left, -1 from the right: each shape has a lit and a shaded side.
    """

    def __init__(self, light: int = 1) -> None:
        self.light = light
        self.cells = np.zeros((HEIGHT * FINE, WIDTH * FINE), np.uint8)  # 3 x material + shade; 0: nothing is painted
        self.palette: list[Sequence[int]] = [(0, 0, 0)]

    def material(self, colour: Sequence[int]) -> int:
        """Add a colour (three integers in [0, 255]) to the palette; returns its number."""
        self.palette.append(colour)
        return len(self.palette) - 1

    def polygon(self, points: Sequence[Point], material: int, pattern: tuple[int, Pattern] | None = None) -> None:
        """Fill each row between the outermost crossings of the outline, which is exact for convex shapes.

        pattern: a second material, and the function that determines where it replaces the first.
        """
        corners = np.array([(round(x), round(y)) for x, y in points], np.int64)
        x0, y0 = corners.T[:, :, None]
        x1, y1 = np.roll(corners, -1, axis=0).T[:, :, None]
        top, bottom = max(int(y0.min()), 0), min(int(y0.max()) + 1, len(self.cells))
        if top >= bottom:
            return
        rows = np.arange(top, bottom)
        rise = y1 - y0
        crossing = x0 + (x1 - x0) * (rows - y0) // np.where(rise == 0, 1, rise)
        on_edge = (np.minimum(y0, y1) <= rows) & (rows <= np.maximum(y0, y1))
        level = on_edge & (rise == 0)
        left = np.where(level, np.minimum(x0, x1), np.where(on_edge, crossing, 1 << 30)).min(0)
        right = np.where(level, np.maximum(x0, x1), np.where(on_edge, crossing, -(1 << 30))).max(0)
        self._fill(rows, left, right, material, pattern)

    def ellipse(self, centre: Point, radii: Point, material: int) -> None:
        """Fill an upright ellipse (its outline is a polygon of 12 corners)."""
        (x, y), (across, down) = centre, radii
        self.polygon([(x + across * c, y + down * s) for c, s in CIRCLE], material)

    def limb(self, start: Point, end: Point, start_radius: float, end_radius: float, material: int) -> None:
        """Fill a tapering limb with round ends."""
        (x0, y0), (x1, y1) = start, end
        length = math.sqrt((x1 - x0) ** 2 + (y1 - y0) ** 2) or 1.0
        across, down = (y0 - y1) / length, (x1 - x0) / length  # the normal
        self.polygon(
            [
                (x0 + across * start_radius, y0 + down * start_radius),
                (x1 + across * end_radius, y1 + down * end_radius),
                (x1 - across * end_radius, y1 - down * end_radius),
                (x0 - across * start_radius, y0 - down * start_radius),
            ],
            material,
        )
        self.ellipse(end, (end_radius, end_radius), material)

    def _fill(
        self, rows: np.ndarray, left: np.ndarray, right: np.ndarray, material: int, pattern: tuple[int, Pattern] | None
    ) -> None:
        first, last = max(int(left.min()), 0), min(int(right.max()) + 1, self.cells.shape[1])
        if first >= last:
            return
        columns = np.arange(first, last)[None, :]
        left, right = left[:, None], right[:, None]
        along, breadth = 4 * (columns - left), right - left
        near, far = (1, 2) if self.light > 0 else (2, 1)
        shade = np.where(along < breadth, near, np.where(along > 3 * breadth, far, 0))
        if pattern is None:
            paint = 3 * material + shade
        else:
            other, where = pattern
            paint = 3 * np.where(where(rows[:, None], columns), other, material) + shade
        target = self.cells[rows[0] : rows[-1] + 1, first:last]
        np.copyto(target, paint.astype(np.uint8), where=(columns >= left) & (columns <= right))

    def render(self, background: np.ndarray) -> np.ndarray:
        """The picture (HEIGHT, WIDTH, 3) int32 in [0, 255], over a background of the same shape."""
        colours = np.array(self.palette, np.int32)
        shades = np.stack([colours, np.minimum(colours * 9 // 8 + 4, 255), colours * 3 // 4], axis=1).reshape(-1, 3)
        total = np.zeros((HEIGHT, WIDTH, 3), np.int32)
        bare = np.zeros((HEIGHT, WIDTH), np.int32)
        for row in range(FINE):
            for column in range(FINE):
                cells = self.cells[row::FINE, column::FINE]
                total += shades[cells]
                bare += cells == 0
        return (total + background * bare[:, :, None]) // FINE**2
