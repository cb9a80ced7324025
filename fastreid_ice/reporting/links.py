"""Pseudo labels as a folder of symbolic links, one sub-folder per cluster, to look through in a file browser."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..files import new_folder
from ..progress import progress
from .labels import PseudoLabels

LONGEST = 255  # bytes of a file name


def plan_links(labels: PseudoLabels) -> dict[str, str]:
    """Link name, relative to the folder of the links -> absolute path of the image."""
    targets: dict[str, str] = {}
    copies: Counter[str] = Counter()
    digits = max((len(camera) for camera in labels.cameras if camera.isdecimal()), default=0)
    width = max(4, len(str(labels.labels.max(initial=0))))
    rows = zip(labels.paths, labels.cameras, labels.labels, labels.distances, strict=True)
    for path, camera, label, distance in rows:
        folder = "noise" if label < 0 else f"cluster_{label:0{width}d}"
        place = camera.zfill(digits) if camera.isdecimal() else re.sub(r"[^-.\w]", "-", camera)
        front = f"cam{place}_" if camera else ""
        front += "" if np.isnan(distance) else f"{distance:.4f}_"
        stem, suffix = os.path.splitext(os.path.basename(path))
        wanted = name = f"{folder}/{_shortened(front + stem, suffix)}"
        while name in targets:
            copies[wanted] += 1
            name = f"{folder}/{_shortened(front + stem, f'_{copies[wanted] + 1}{suffix}')}"
        targets[name] = os.path.abspath(path)
    return targets


def _shortened(stem: str, end: str) -> str:
    """``stem + end``, with the stem cut to the length that a file name can have."""
    while len(os.fsencode(stem + end)) > LONGEST:
        stem = stem[:-1]
    return stem + end


def make_links(targets: Mapping[str, str], folder: Path) -> None:
    """Creates the links in a new folder; if they cannot be created, nothing is left of them.

    Raises:
        OSError: they cannot, as on a file system without links.
    """
    with new_folder(folder) as scratch:
        for name, target in progress(targets.items(), "Making links"):
            (scratch / name).parent.mkdir(exist_ok=True)
            (scratch / name).symlink_to(target)
