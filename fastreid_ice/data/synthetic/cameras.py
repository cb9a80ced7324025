"""Cameras of the synthetic data: how a camera changes a picture, the scene it sees, and the crops it takes.

Everything is integer arithmetic on ``(HEIGHT, WIDTH, 3)`` pictures in [0, 255], so that a crop is the same on every
machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .canvas import CAMERA, CROSSING, FINE, HEIGHT, PERSON, SHOT, WIDTH, Canvas, cosine, pick, sine, stream
from .people import Looks, Pose, Walker
from .scenes import draw_obstacle, draw_scene

_COMPANY = {"before": 1, "behind": 2, "obstacle": 3}
PACE = 50  # degrees of the gait from frame to frame of a crossing
SLOWEST = 14  # degrees that a leg swings then: nobody crosses a view standing
STEP = 8  # pixels of the scene from frame to frame, for somebody who walks across the picture


@dataclass(frozen=True)
class Strength:
    """How much cameras differ from one another, and how difficult a shot is."""

    cast: int  # tint of a camera's pictures, percent; each camera has another hue
    mixing: int  # of the colour channels, percent at most
    exposure: tuple[int, int]  # percent, lowest and highest
    contrast: tuple[int, int]  # percent
    blur: int  # largest number of passes of a (1, 2, 1) filter
    noise: int  # of the sensor, grey levels at most
    flicker: int  # exposure from shot to shot, percent at most
    pitch: int  # degrees, the steepest look down
    favourite: int  # weight of the direction in which people walk past this camera; the others have weight 1
    jitter: int  # of the box, percent of its size at most
    occluded: int  # shots with something or somebody in the way, percent
    places: int  # number of places; each camera sees the next one


STRENGTHS = {
    "mild": Strength(
        cast=3, mixing=3, exposure=(94, 107), contrast=(95, 105), blur=1, noise=6, flicker=5, pitch=12,
        favourite=1, jitter=5, occluded=10, places=1,
    ),
    "strong": Strength(
        cast=7, mixing=6, exposure=(84, 118), contrast=(87, 112), blur=2, noise=8, flicker=5, pitch=18,
        favourite=4, jitter=5, occluded=15, places=99,
    ),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class DrawnCamera:
    """Camera ``number`` of the set ``seed``."""

    seed: int
    number: int
    strength: Strength
    mixing: np.ndarray  # (3, 3) int32, 1/256ths: how the channels mix
    tone: np.ndarray  # (3, 256) int32: cast, exposure and contrast as one curve a channel
    slope: int  # of the light from top to bottom, percent
    blur: int
    noise: int
    pitch: int
    light: int
    size: int  # body height, percent of the box
    headings: tuple[int, ...]  # weights of the eight walking directions
    scene: np.ndarray  # (H, W, 3) int32, wider and taller than a crop

    @classmethod
    def draw_lots(cls, seed: int, number: int, strength: Strength) -> DrawnCamera:
        """The camera, always the same one for the same arguments."""
        offsets = stream(seed, CAMERA).randint(1000, size=3)
        hue, bright, hard = (offsets + number * np.array([618, 755, 570])) % 1000  # irrational steps separate cameras
        rng = stream(seed, CAMERA, number)
        mixing = (
            np.diag([256, 256, 256]) * (100 - strength.mixing) // 100
            + rng.randint(0, 2 * strength.mixing + 1, (3, 3)) * 256 // 300
        )
        tint = [100 + round(strength.cast * cosine(int(hue) * 360 // 1000 + turn)) for turn in (0, 120, 240)]
        exposure, contrast = (
            low + (high - low) * share // 1000
            for (low, high), share in ((strength.exposure, bright), (strength.contrast, hard))
        )
        levels = np.arange(256)[None, :] * np.array(tint)[:, None] * exposure // 10_000
        tone = np.clip((levels - 118) * contrast // 100 + 118, 0, 255)
        headings = np.ones(8, np.int64)
        axis = rng.randint(4)  # people come and go along a path
        headings[[axis, axis + 4]] += strength.favourite - 1
        return cls(
            seed=seed,
            number=number,
            strength=strength,
            mixing=mixing.astype(np.int32),
            tone=tone.astype(np.int32),
            slope=rng.randint(-strength.cast, strength.cast + 1),
            blur=rng.randint(strength.blur + 1),
            noise=rng.randint(2, strength.noise + 1),
            pitch=rng.randint(4, strength.pitch + 1),
            light=1 - 2 * rng.randint(2),
            size=rng.randint(84, 93),
            headings=tuple(int(weight) for weight in headings),
            scene=draw_scene(seed, number % strength.places),
        )

    def shoot(self, person: int, shot: int) -> np.ndarray:
        """Crop ``shot`` of a person of the same set, (HEIGHT, WIDTH, 3) uint8."""
        return self._picture(person, stream(self.seed, SHOT, person, self.number, shot))

    def film(self, person: int, crossing: int, frame: int) -> np.ndarray:
        """Frame ``frame`` of crossing ``crossing`` of this camera's view by a person, (HEIGHT, WIDTH, 3) uint8.

        The person walks on from frame to frame, in one direction and along the scene. The box, what stands in the way
        and the sensor are those of the frame.
        """
        walk = stream(self.seed, CROSSING, person, self.number, crossing)
        pose = Pose.draw_lots(walk, self.headings)
        pose = replace(pose, phase=pose.phase + PACE * frame, stride=max(pose.stride, SLOWEST))
        width, height = self.scene.shape[1] - WIDTH + 1, len(self.scene) - HEIGHT + 1
        # Towards the left of the picture with heading 90; towards the camera or away, the background nearly stays.
        across = walk.randint(width) - round(STEP * sine(pose.heading)) * frame
        place = min(max(across, 0), width - 1), walk.randint(height)
        return self._picture(person, stream(self.seed, SHOT, person, self.number, crossing, frame), pose, place)

    def _picture(
        self,
        person: int,
        rng: np.random.RandomState,
        pose: Pose | None = None,
        place: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """A person in a pose, before the part of the scene at ``place`` (column, row); drawn if they are not given."""
        canvas = Canvas(self.light)
        jitter = self.strength.jitter
        shift, drop, zoom = (int(n) for n in rng.randint(-jitter, jitter + 1, 3))
        size = HEIGHT * FINE * (self.size + zoom) // 100
        x = WIDTH * FINE * (50 + shift) // 100
        y = HEIGHT * FINE * (96 + drop) // 100
        pose = pose or Pose.draw_lots(rng, self.headings)
        company = pick(rng, _COMPANY) if rng.randint(100) < self.strength.occluded else ""
        if company == "behind":
            self._passer_by(canvas, rng, x, y - size // 14, size * 9 // 10)
        Walker(looks_of(self.seed, person), pose, x=x, y=y, size=size, pitch=self.pitch).draw(canvas)
        if company == "before":
            self._passer_by(canvas, rng, x, y + size // 12, size * 11 // 10)
        elif company == "obstacle":
            draw_obstacle(canvas, rng)
        if place is None:
            place = rng.randint(self.scene.shape[1] - WIDTH + 1), rng.randint(len(self.scene) - HEIGHT + 1)
        across, down = place
        picture = canvas.render(self.scene[down : down + HEIGHT, across : across + WIDTH])
        return self._expose(picture, rng)

    def _passer_by(self, canvas: Canvas, rng: np.random.RandomState, x: int, y: int, size: int) -> None:
        side = (1 - 2 * rng.randint(2)) * WIDTH * FINE * rng.randint(30, 48) // 100
        pose = Pose.draw_lots(rng, self.headings)
        Walker(Looks.draw_lots(rng), pose, x=x + side, y=y, size=size, pitch=self.pitch).draw(canvas)

    def _expose(self, picture: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
        """The picture as the sensor records it."""
        flicker = 100 + rng.randint(-self.strength.flicker, self.strength.flicker + 1)
        rows = np.arange(HEIGHT)[:, None, None] * 2 - HEIGHT
        picture = picture * flicker * (100 * HEIGHT + rows * self.slope) // (10_000 * HEIGHT)
        picture = np.clip(picture @ self.mixing >> 8, 0, 255)
        picture = np.stack([self.tone[channel][picture[:, :, channel]] for channel in range(3)], axis=2)
        for _ in range(self.blur):
            picture = _soften(picture)
        grain = np.frombuffer(rng.bytes(2 * picture.size), np.uint8).reshape(2, *picture.shape).astype(np.int32)
        picture = picture + (grain[0] + grain[1] - 255) * self.noise // 128
        return np.clip(picture, 0, 255).astype(np.uint8)


def looks_of(seed: int, person: int) -> Looks:
    """The looks of a person of the set ``seed``."""
    return Looks.draw_lots(stream(seed, PERSON, person))


def _soften(picture: np.ndarray) -> np.ndarray:
    """One pass of the (1, 2, 1) filter along both axes, edges repeated."""
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) // 16
