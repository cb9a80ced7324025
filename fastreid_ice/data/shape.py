"""The size of crops by the shape of the images: people are tall, faces are square, vehicles are wide."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from fastreid.config import CfgNode
from fastreid.data.datasets import DATASET_REGISTRY
from PIL import Image

from ..config import lookup
from .training_set import build_dataset
from .views import crop_size

SAMPLE = 1000  # images whose shape is read, evenly spaced in the list
STEP = 16  # sides of crops are multiples of it, as most networks reduce them 16 times or more
NEAR = 1.25  # the size stays if the images' shape differs from its own by less than this factor
ASPECTS = (0.25, 4.0)  # width over height, at least and at most
TURNED = (5, 6, 7, 8)  # values of EXIF's orientation that exchange width and height
ORIENTATION = 0x0112


def fit_size(cfg: CfgNode) -> None:
    """With ``INPUT.AUTO_SIZE``, sets ``INPUT.SIZE_TRAIN`` and ``SIZE_TEST`` by the images to train on, in place.

    Only datasets of a user's own images (``unchecked_images``) are looked at, in ``DATASETS.ROOT``. The number of
    pixels stays about that of ``SIZE_TRAIN``, and ``PADDING.SIZE`` changes with its square root. Erased shares of the
    area (``INPUT.REA``) need no change. ``AUTO_SIZE`` is then off, so that the config holds what was chosen.

    Raises:
        InputError: as ``build_dataset``, or a size in the config that is none.
    """
    if not (cfg.INPUT.AUTO_SIZE and cfg.DATASETS.ROOT):
        return
    own = [
        name
        for name in cfg.DATASETS.NAMES
        if getattr(lookup(DATASET_REGISTRY, name, "DATASETS.NAMES"), "unchecked_images", False)
    ]
    aspect = median_aspect([path for name in own for path, *_ in build_dataset(cfg, name).train])
    if aspect is None:
        return
    old = crop_size(cfg, "SIZE_TRAIN")
    new = fitted_size(old, aspect)
    cfg.INPUT.AUTO_SIZE = False
    if new != old:
        cfg.INPUT.SIZE_TRAIN, cfg.INPUT.SIZE_TEST = list(new), list(new)
        cfg.INPUT.PADDING.SIZE = round(cfg.INPUT.PADDING.SIZE * math.sqrt(math.prod(new) / math.prod(old)))


def fitted_size(size: tuple[int, int], aspect: float) -> tuple[int, int]:
    """(H, W) for images of this width over height, with about as many pixels as ``size`` (H, W).

    ``size`` itself if its shape is nearly the same; otherwise both sides are multiples of 16.
    """
    height, width = size
    aspect = min(max(aspect, ASPECTS[0]), ASPECTS[1])
    if max(aspect * height / width, width / (aspect * height)) < NEAR:
        return size
    sides = math.sqrt(height * width / aspect), math.sqrt(height * width * aspect)
    tall, wide = (max(STEP, STEP * round(side / STEP)) for side in sides)
    return tall, wide


def median_aspect(paths: Sequence[str]) -> float | None:
    """The median width over height of the images that can be read, as they are shown; None if there are none.

    At most 1,000 of them are opened, and only their heads are read.
    """
    rows = np.linspace(0, len(paths) - 1, min(len(paths), SAMPLE)).astype(int)
    aspects = [aspect for row in rows.tolist() if (aspect := _aspect(paths[row])) is not None]
    return float(np.median(aspects)) if aspects else None


def _aspect(path: str) -> float | None:
    if not os.path.isfile(path):  # opening a named pipe would wait
        return None
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION) in TURNED
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow raises for broken files
        return None
    return height / width if turned else width / height
