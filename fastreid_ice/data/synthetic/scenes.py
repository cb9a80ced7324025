"""The surroundings of the people of the synthetic data: wall and ground behind them, and things in front."""

from __future__ import annotations

import numpy as np

from .canvas import CIRCLE, HEIGHT, PLACE, WIDTH, Canvas, pick, stream

WALLS = (
    ("brick", (142, 88, 72)), ("plain", (186, 180, 166)), ("windows", (120, 126, 136)), ("leaves", (66, 92, 54)),
    ("boards", (190, 176, 140)), ("windows", (202, 198, 190)), ("brick", (150, 140, 128)), ("plain", (96, 110, 124)),
)  # fmt: skip
GROUNDS = {
    ("grain", (104, 104, 108)): 4, ("tiles", (160, 154, 146)): 4, ("leaves", (88, 116, 62)): 2,
    ("boards", (136, 108, 78)): 1, ("tiles", (196, 190, 180)): 2,
}  # fmt: skip
THINGS = {(196, 60, 50): 2, (52, 80, 130): 3, (220, 214, 196): 3, (60, 60, 62): 4, (80, 100, 70): 2, (210, 170, 70): 1}
OBSTACLES = {"pole": 3, "bush": 2, "bicycle": 2, "rail": 2}


def draw_scene(seed: int, number: int) -> np.ndarray:
    """A wall above a ground, with a few things on the wall: (H, W, 3) int32 in [0, 255], four crops wide.

    Neighbouring numbers have different kinds of walls.
    """
    kinds = stream(seed, PLACE).permutation(len(WALLS))
    rng = stream(seed, PLACE, number)
    height, width = HEIGHT + 16, 4 * WIDTH
    horizon = height * rng.randint(38, 66) // 100
    wall = _surface(rng, WALLS[kinds[number % len(WALLS)]], (horizon, width))
    for _ in range(rng.randint(2, 6)):  # doors, posters, cars
        tall, wide = rng.randint(20, 60), rng.randint(14, 60)
        x, y = rng.randint(width - wide), rng.randint(max(horizon - tall, 1))
        thing = np.array(pick(rng, THINGS)) * rng.randint(60, 116) // 100
        wall[y : y + tall, x : x + wide] = thing
        wall[y + 3 : y + tall - 3, x + 3 : x + wide - 3] = thing * 5 // 6
    ground = _surface(rng, pick(rng, GROUNDS), (height - horizon, width))
    ground[:3] = ground[:3] * 2 // 3  # the shadow at the foot of the wall
    return np.clip(np.concatenate([wall, ground]), 0, 255).astype(np.int32)


def _surface(rng: np.random.RandomState, kind: tuple[str, tuple], shape: tuple[int, int]) -> np.ndarray:
    """One surface, (*shape, 3). kind: its texture and its colour."""
    texture, colour = kind
    rows, columns = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    step = rng.randint(5, 10)
    if texture == "brick":
        relief = -34 * ((rows % step == 0) | ((columns + rows // step % 2 * step) % (2 * step) == 0))
    elif texture == "tiles":
        relief = -26 * ((rows % (step + 3) == 0) | ((columns + rows // 2) % (2 * step) == 0))
    elif texture == "boards":
        relief = -30 * (columns % (2 * step) == 0) + 8 * (columns // (2 * step) % 2) + 0 * rows
    elif texture == "windows":
        relief = -64 * ((rows % (5 * step) > 2 * step) & (columns % (4 * step) > step))
    elif texture == "leaves":
        relief = _clouds(rng, shape, 3, 40)
    else:
        relief = np.zeros(shape, np.int64)
    relief = relief * 2 // 3 + _clouds(rng, shape, 16, 22) + _clouds(rng, shape, 1, 6)
    tint = np.array(colour) * rng.randint(76, 118) // 100 + rng.randint(-12, 13, 3)
    return tint + relief[:, :, None] * (tint + 60) // 180


def _clouds(rng: np.random.RandomState, shape: tuple[int, int], grain: int, depth: int) -> np.ndarray:
    """Soft blotches ``grain`` pixels wide and up to ``depth`` grey levels deep, of the given shape."""
    blotches = rng.randint(-depth, depth + 1, (shape[0] // grain + 3, shape[1] // grain + 3))
    blotches = blotches.repeat(grain, axis=0).repeat(grain, axis=1)
    sums = blotches.cumsum(0).cumsum(1)  # a mean over grain x grain pixels, from running sums
    means = (sums[grain:, grain:] - sums[grain:, :-grain] - sums[:-grain, grain:] + sums[:-grain, :-grain]) // grain**2
    return means[: shape[0], : shape[1]]


def draw_obstacle(canvas: Canvas, rng: np.random.RandomState) -> None:
    """Something that stands in the way: a pole, a bush, a bicycle or a rail."""
    kind = pick(rng, OBSTACLES)
    height, width = canvas.cells.shape
    material = canvas.material((58, 88, 52) if kind == "bush" else pick(rng, THINGS))

    def bar(left: int, top: int, right: int, bottom: int) -> None:
        canvas.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], material)

    if kind == "pole":
        x, half = rng.randint(width), rng.randint(5, 13)
        bar(x - half, 0, x + half, height)
    elif kind == "bush":
        top = height * rng.randint(66, 86) // 100
        for y in (top, top + 60):
            for x in range(0, width + 1, 24):
                canvas.ellipse((x, y + rng.randint(10, 40)), (34, 52), material)
    elif kind == "rail":
        top = height * rng.randint(50, 70) // 100
        for y in (top, top + 50):
            bar(0, y, width, y + 12)
        for x in range(rng.randint(60), width, 90):
            bar(x, top, x + 10, height)
    else:
        x, y, radius = rng.randint(width), height * 86 // 100, 50
        for hub in (x - 70, x + 70):
            rim = [(hub + radius * across, y + radius * down) for across, down in CIRCLE]
            for start, end in zip(rim, rim[1:] + rim[:1], strict=True):
                canvas.limb(start, end, 4, 4, material)
        back, saddle, pedals, bar_end, front = (x - 70, y), (x - 20, y - 64), (x, y), (x + 56, y - 70), (x + 70, y)
        for end in (back, pedals, bar_end):
            canvas.limb(saddle, end, 5, 5, material)
        for end in (pedals, front):
            canvas.limb(bar_end, end, 5, 5, material)
