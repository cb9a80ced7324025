"""People of the synthetic data: what a person looks like, how they walk, and how that is drawn.

A person is a simple three-dimensional figure: joints have coordinates across, up and forward (thousandths of the body
height), the figure is turned to its walking direction, and its parts are painted back to front. Therefore a back shows
the rucksack and no face, a side is narrow, and an open jacket shows the shirt only from the front.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from .canvas import Canvas, Pattern, Point, cosine, pick, sine

SKIN = {(236, 200, 178): 4, (222, 178, 150): 4, (198, 148, 116): 3, (150, 104, 76): 2, (98, 66, 50): 2}
HAIR = {(28, 24, 24): 6, (58, 40, 30): 5, (104, 72, 46): 4, (176, 140, 86): 3, (150, 146, 142): 2, (124, 56, 34): 1}
HAIR_STYLES = {"short": 9, "long": 5, "tail": 3, "bun": 2, "bald": 2, "cap": 3}
# Clothing as in the street: mostly black, grey and blue, so that no colour alone identifies a person.
TOP_COLOURS = {
    (34, 34, 38): 16, (74, 76, 82): 9, (138, 140, 144): 8, (226, 226, 224): 11, (36, 46, 80): 11, (62, 92, 150): 8,
    (136, 170, 206): 4, (166, 44, 48): 6, (104, 34, 48): 4, (54, 106, 70): 4, (96, 100, 62): 4, (192, 174, 140): 5,
    (112, 80, 58): 4, (214, 142, 156): 3, (104, 74, 132): 3, (214, 186, 76): 3, (208, 112, 52): 2,
}  # fmt: skip
LOWER_COLOURS = {
    (30, 30, 34): 22, (44, 54, 84): 18, (82, 104, 142): 13, (126, 150, 182): 5, (84, 86, 92): 10, (146, 146, 146): 5,
    (158, 138, 108): 7, (196, 182, 152): 4, (220, 220, 216): 3, (92, 70, 54): 4, (84, 90, 66): 4, (130, 48, 56): 2,
}  # fmt: skip
SHOE_COLOURS = {
    (26, 26, 28): 8, (226, 226, 226): 6, (96, 66, 46): 4, (120, 122, 126): 3, (150, 44, 46): 2, (40, 60, 120): 2,
}  # fmt: skip
BAG_COLOURS = {
    (30, 30, 32): 8, (64, 66, 74): 4, (44, 56, 100): 4, (112, 76, 48): 4, (160, 46, 50): 3, (70, 104, 74): 2,
    (206, 180, 90): 1,
}  # fmt: skip
WIDEN = 1.15  # crops are stretched to 2:1 from narrower boxes
PATTERNS = {"plain": 11, "stripes": 3, "bars": 2, "checks": 3, "yoke": 3, "hoop": 2}


@dataclass(frozen=True)
class Looks:
    """What is the same in all images of a person. Lengths are thousandths of the body height."""

    skin: tuple
    hair: tuple
    hair_style: str
    cap: tuple
    shoulder: int  # half width
    waist: int
    hip: int
    depth: int  # half of the chest, front to back
    girth: int  # of the limbs, percent
    garment: str  # "shirt", "jacket" (closed), "open" (jacket over a shirt), "coat"
    sleeve: str  # "long", "short", "none"
    top: tuple
    top_second: tuple
    pattern: str
    period: int  # of the pattern
    sleeves: tuple  # their colour
    inner: tuple  # shirt under an open jacket
    badge: str  # "none", "chest", "back"
    lower: str  # "trousers", "slim", "shorts", "skirt", "long skirt"
    lower_colour: tuple
    shoes: tuple
    bag: str  # "none", "rucksack", "shoulder", "hand"
    bag_side: int  # -1, +1
    bag_colour: tuple

    @classmethod
    def draw_lots(cls, rng: np.random.RandomState) -> Looks:
        """A random person."""

        def dyed(colours: dict, spread: int = 14) -> tuple:
            shift = rng.randint(-spread, spread + 1, 3) // 2 + rng.randint(-spread, spread + 1)
            return tuple(int(np.clip(c + s, 8, 248)) for c, s in zip(pick(rng, colours), shift, strict=True))

        top = dyed(TOP_COLOURS)
        return cls(
            skin=dyed(SKIN, 6),
            hair=dyed(HAIR, 8),
            hair_style=pick(rng, HAIR_STYLES),
            cap=dyed(BAG_COLOURS),
            shoulder=rng.randint(104, 134),
            waist=rng.randint(74, 112),
            hip=rng.randint(84, 112),
            depth=rng.randint(58, 92),
            girth=rng.randint(88, 124),
            garment=pick(rng, {"shirt": 9, "jacket": 4, "open": 5, "coat": 3}),
            sleeve=pick(rng, {"long": 10, "short": 8, "none": 1}),
            top=top,
            top_second=dyed(TOP_COLOURS),
            pattern=pick(rng, PATTERNS),
            period=rng.randint(22, 44),
            sleeves=dyed(TOP_COLOURS) if rng.randint(5) == 0 else top,
            inner=dyed(TOP_COLOURS),
            badge=pick(rng, {"none": 6, "chest": 3, "back": 2}),
            lower=pick(rng, {"trousers": 10, "slim": 7, "shorts": 5, "skirt": 3, "long skirt": 1}),
            lower_colour=dyed(LOWER_COLOURS),
            shoes=dyed(SHOE_COLOURS, 8),
            bag=pick(rng, {"none": 8, "rucksack": 6, "shoulder": 4, "hand": 3}),
            bag_side=1 - 2 * rng.randint(2),
            bag_colour=dyed(BAG_COLOURS),
        )


@dataclass(frozen=True)
class Pose:
    """One moment of a walk."""

    heading: int  # degrees; 0 towards the camera, 90 to the left of the picture, 180 away
    phase: int  # degrees of the gait
    stride: int  # degrees that a leg swings; 0 stands

    @classmethod
    def draw_lots(cls, rng: np.random.RandomState, headings: tuple[int, ...]) -> Pose:
        """A random moment; headings: weights of the eight directions (0, 45, ..., 315 degrees)."""
        direction = pick(rng, dict(enumerate(headings)))
        stride = pick(rng, {0: 1, 14: 2, 24: 4, 31: 3})
        return cls(heading=45 * direction + int(rng.randint(-14, 15)), phase=int(rng.randint(360)), stride=stride)


class Walker:
    """A person in a pose at a place of the canvas, ready to be drawn.

    x, y: of the ground below the body, fine pixels; size: body height, fine pixels; pitch: degrees that the camera
    looks down.
    """

    def __init__(self, looks: Looks, pose: Pose, *, x: int, y: int, size: int, pitch: int) -> None:
        self.looks, self.pose, self.x, self.y, self.unit = looks, pose, x, y, size / 1000
        self.facing, self.aside = cosine(pose.heading), sine(pose.heading)
        self.upright, self.tilt = cosine(pitch), sine(pitch)

    def draw(self, canvas: Canvas) -> None:
        """Paint the parts, the farthest first."""
        parts: list[tuple[float, Callable[[Canvas], None]]] = [(0.0, self._torso), (1.0, self._head)]
        for side in (-1, 1):
            parts.append((side * self.aside * 60 - 200, partial(self._leg, side=side)))
            swing = self._swing(side)
            parts.append((side * self.aside * 140 - swing * self.facing * 90, partial(self._arm, side=side)))
        if self.looks.lower in ("skirt", "long skirt"):
            parts.append((-90.0, self._skirt))
        if self.looks.bag == "rucksack":
            parts.append((-120 * self.facing, self._rucksack))
        elif self.looks.bag == "shoulder":
            parts.append((150 * self.aside * self.looks.bag_side, self._shoulder_bag))
        if self.looks.hair_style in ("long", "tail", "bun"):
            parts.append((1.5 if self.facing < 0.35 else -1.0, self._back_hair))
        for _, part in sorted(parts, key=lambda item: item[0]):
            part(canvas)

    def _at(self, lateral: float, up: float, forward: float) -> Point:
        """The fine pixel where a point of the body is seen. lateral: towards the person's left hand."""
        depth = lateral * self.aside + forward * self.facing
        across = WIDEN * (lateral * self.facing - forward * self.aside)
        return self.x + across * self.unit, self.y - (up * self.upright - depth * self.tilt) * self.unit

    def _breadth(self, lateral: float, forward: float) -> float:
        """Half the width, fine pixels, of an upright elliptic cylinder seen from this side."""
        return WIDEN * self.unit * math.sqrt((lateral * self.facing) ** 2 + (forward * self.aside) ** 2)

    def _swing(self, side: int) -> float:
        """How far forward a leg is, in [-1, 1]; arms swing against it."""
        return side * sine(self.pose.phase) * self.pose.stride / 31

    def _tube(self, canvas: Canvas, profile: Sequence[tuple[float, float, float]], material: int, pattern=None) -> None:
        """A garment as a stack of ellipses. profile: (height, half width, half depth), from the top down."""
        left, right = [], []
        for up, lateral, forward in profile:
            (x, y), breadth = self._at(0, up, 0), self._breadth(lateral, forward)
            left.append((x - breadth, y))
            right.append((x + breadth, y))
        canvas.polygon(left + right[::-1], material, pattern)

    def _pattern(self, canvas: Canvas) -> tuple[int, Pattern] | None:
        kind, period = self.looks.pattern, max(round(self.looks.period * self.unit), 4)
        (x, y), (_, chest) = self._at(0, 840, 0), self._at(0, 690, 0)
        x, y, chest = round(x), round(y), round(chest)
        patterns: dict[str, Pattern] = {
            "stripes": lambda rows, columns: ((rows - y) % period * 5 < 2 * period) | (columns < 0),
            "bars": lambda rows, columns: ((columns - x) % period * 5 < 2 * period) | (rows < 0),
            "checks": lambda rows, columns: ((rows - y) // period + (columns - x) // period) % 2 == 0,
            "yoke": lambda rows, columns: (rows < chest) | (columns < 0),
            "hoop": lambda rows, columns: ((rows >= chest) & (rows < chest + 3 * period)) | (columns < 0),
        }
        return None if kind == "plain" else (canvas.material(self.looks.top_second), patterns[kind])

    def _torso(self, canvas: Canvas) -> None:
        looks = self.looks
        top = canvas.material(looks.top)
        hem = {"shirt": 468, "jacket": 440, "open": 436, "coat": 300}[looks.garment]
        thick = 0 if looks.garment == "shirt" else 8
        neck, shoulder = canvas.material(looks.skin), looks.shoulder + thick
        self._tube(canvas, [(880, 36, 36), (820, 40, 40)], neck)
        profile = [
            (846, 44, 44),
            (826, shoulder - 8, looks.depth - 14),
            (800, shoulder, looks.depth),
            (690, shoulder - 14, looks.depth + 4),
            (590, looks.waist + thick, looks.depth - 6 + thick),
            (500, looks.hip + thick, looks.depth + thick),
            (hem, looks.hip + thick + (468 - hem) // 8, looks.depth + thick + (468 - hem) // 8),
        ]
        self._tube(canvas, profile, top, self._pattern(canvas))
        if looks.garment == "open" and self.facing > 0.2:
            inner = canvas.material(looks.inner)
            corners = [self._at(side, up, looks.depth) for up, side in ((838, -24), (690, -40), (468, -44))]
            corners += [self._at(side, up, looks.depth) for up, side in ((468, 44), (690, 40), (838, 24))]
            canvas.polygon(corners, inner)
        chest = 0.0 if looks.garment == "open" else self.facing
        if {"none": 0.0, "chest": chest, "back": -self.facing}[looks.badge] > 0.3:
            front = looks.depth if looks.badge == "chest" else -looks.depth
            low, half = (690, 40) if looks.badge == "chest" else (640, 62)
            corners = [self._at(side, up, front) for side, up in ((-half, 760), (half, 760), (half, low), (-half, low))]
            canvas.polygon(corners, canvas.material(looks.top_second))
        if looks.bag == "rucksack" and self.facing > 0.1:
            strap = canvas.material(looks.bag_colour)
            for side in (-1, 1):
                canvas.limb(
                    self._at(side * 66, 832, looks.depth - 10), self._at(side * 78, 640, looks.depth),
                    12 * self.unit, 10 * self.unit, strap,
                )  # fmt: skip

    def _leg(self, canvas: Canvas, side: int) -> None:
        looks, swing = self.looks, self._swing(side)
        angle = round(swing * 31)
        bend = (8 + round(30 * max(0.0, side * cosine(self.pose.phase)))) * self.pose.stride // 31
        hip = (side * looks.hip * 0.52, 490, 0)
        knee = (hip[0] * 0.95, 490 - 225 * cosine(angle), 225 * sine(angle))
        ankle = (hip[0] * 0.9, knee[1] - 220 * cosine(angle - bend), knee[2] + 220 * sine(angle - bend))
        toe = (ankle[0] * 1.1, ankle[1] - 26, ankle[2] + 74)
        girth = looks.girth * self.unit / 100
        skin, cloth = canvas.material(looks.skin), canvas.material(looks.lower_colour)
        shoe = canvas.material(looks.shoes)
        bare = looks.lower in ("shorts", "skirt")
        hem = 26 if looks.lower == "slim" else 38
        at = self._at
        canvas.limb(at(ankle[0], ankle[1] - 16, ankle[2] - 16), at(*toe), 26 * self.unit, 20 * self.unit, shoe)
        canvas.limb(at(*knee), at(*ankle), 42 * girth, (25 if bare else hem) * girth, skin if bare else cloth)
        canvas.limb(at(*hip), at(*knee), 66 * girth, 46 * girth, cloth)
        if bare:
            calf = [k + (a - k) * 0.25 for k, a in zip(knee, ankle, strict=True)]
            canvas.limb(at(*knee), at(*calf), 42 * girth, 40 * girth, skin)

    def _skirt(self, canvas: Canvas) -> None:
        looks = self.looks
        hem, flare = (290, 34) if looks.lower == "skirt" else (130, 50)
        profile = [(600, looks.waist, looks.depth - 8), (500, looks.hip, looks.depth)]
        profile.append((hem, looks.hip + flare, looks.depth + flare))
        self._tube(canvas, profile, canvas.material(looks.lower_colour))

    def _arm(self, canvas: Canvas, side: int) -> None:
        looks = self.looks
        angle = round(-self._swing(side) * 28)
        bend = 12 + self.pose.stride // 2
        thick = 0 if looks.garment == "shirt" else 5
        out = looks.shoulder + thick
        shoulder = (side * (out - 14), 800, 0)
        elbow = (side * (out + 12), 800 - 160 * cosine(angle), 160 * sine(angle))
        wrist = (side * (out + 8), elbow[1] - 140 * cosine(angle + bend), elbow[2] + 140 * sine(angle + bend))
        girth = looks.girth * self.unit / 100
        skin, cloth = canvas.material(looks.skin), canvas.material(looks.sleeves)
        sleeve = looks.sleeve if looks.garment == "shirt" else "long"
        upper, lower = {"long": (cloth, cloth), "short": (cloth, skin), "none": (skin, skin)}[sleeve]
        at = self._at
        if looks.bag == "hand" and side == looks.bag_side:
            strap = canvas.material(looks.bag_colour)
            canvas.limb(at(*wrist), at(wrist[0], wrist[1] - 60, wrist[2]), 8 * self.unit, 8 * self.unit, strap)
            self._box(canvas, (wrist[0], wrist[1] - 130, wrist[2]), (26, 66, 78))
        canvas.ellipse(at(wrist[0], wrist[1] - 18, wrist[2]), (24 * self.unit, 30 * self.unit), skin)
        canvas.limb(at(*elbow), at(*wrist), (36 + thick) * girth, (27 + thick) * girth, lower)
        canvas.ellipse(at(*shoulder), ((42 + thick) * girth, (42 + thick) * girth), upper)
        canvas.limb(at(*shoulder), at(*elbow), (42 + thick) * girth, (36 + thick) * girth, upper)

    def _head(self, canvas: Canvas) -> None:
        looks = self.looks
        skin = canvas.material(looks.skin)
        hair = canvas.material(looks.cap if looks.hair_style == "cap" else looks.hair)
        (x, y), unit = self._at(0, 926, 8), self.unit
        canvas.ellipse((x, y), (62 * unit, 76 * unit), skin)
        if looks.hair_style == "bald":
            return
        crown_x, crown_y = self._at(0, 946, -14)
        if self.facing < -0.3:  # from behind: hair down to the neck
            canvas.ellipse((crown_x, crown_y + 8 * unit), (66 * unit, 72 * unit), hair)
        else:
            canvas.ellipse((crown_x, crown_y), (66 * unit, 62 * unit), hair)
            face_x, face_y = self._at(0, 908, 30)
            canvas.ellipse((face_x, face_y), ((34 + 20 * abs(self.facing)) * unit, 54 * unit), skin)
        if looks.hair_style == "cap":
            peak_x, peak_y = self._at(0, 950, 62)
            canvas.ellipse((peak_x, peak_y), (self._breadth(56, 44), 12 * unit), hair)
        if self.facing > 0.3:
            eyes = canvas.material((40, 34, 34))
            for side in (-1, 1):
                canvas.ellipse(self._at(side * 24, 922, 60), (8 * unit, 7 * unit), eyes)

    def _back_hair(self, canvas: Canvas) -> None:
        unit, hair = self.unit, canvas.material(self.looks.hair)
        if self.looks.hair_style == "bun":
            canvas.ellipse(self._at(0, 976, -56), (36 * unit, 34 * unit), hair)
        elif self.looks.hair_style == "tail":
            canvas.limb(self._at(0, 950, -58), self._at(0, 790, -84), 24 * unit, 16 * unit, hair)
        else:
            (x, top), (_, low) = self._at(0, 950, -26), self._at(0, 770, -40)
            half = self._breadth(76, 44)
            canvas.polygon([(x - half, top), (x - 1.1 * half, low), (x + 1.1 * half, low), (x + half, top)], hair)

    def _rucksack(self, canvas: Canvas) -> None:
        self._box(canvas, (0, 690, -self.looks.depth - 40), (92, 52, 130))

    def _shoulder_bag(self, canvas: Canvas) -> None:
        side, half = self.looks.bag_side, self.looks.shoulder
        front = self.looks.depth if self.facing >= 0 else -self.looks.depth
        strap = canvas.material(self.looks.bag_colour)
        canvas.limb(
            self._at(-side * 60, 838, front * 0.4), self._at(side * (half - 10), 540, front * 0.8),
            10 * self.unit, 10 * self.unit, strap,
        )  # fmt: skip
        self._box(canvas, (side * (half + 10), 490, 0), (34, 84, 74))

    def _box(self, canvas: Canvas, centre: tuple[float, float, float], half: tuple[float, float, float]) -> None:
        """A bag with bevelled corners. half: its half sizes across, forward and up."""
        (x, y), breadth, rise = self._at(*centre), self._breadth(half[0], half[1]), half[2] * self.unit
        octagon = ((-1, -0.6), (-0.7, -1), (0.7, -1), (1, -0.6), (1, 0.7), (0.8, 1), (-0.8, 1), (-1, 0.7))
        canvas.polygon([(x + breadth * h, y + rise * v) for h, v in octagon], canvas.material(self.looks.bag_colour))
