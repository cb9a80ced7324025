"""Pseudo labels in the forms that other programs read: COCO, FiftyOne, and MOTChallenge's files of tracks."""

from __future__ import annotations

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..errors import InputError
from ..progress import progress
from .labels import PseudoLabels
from .pages import common_folder


def as_coco(labels: PseudoLabels) -> dict[str, Any]:
    """One image and one box of category "person" for each crop; the box is the whole crop.

    A box has the cluster as ``track_id``, and in ``attributes``, where CVAT and Datumaro read it, as ``identity``; an
    image in noise has a box without them. File names are relative to ``info.root``, the folder that all images are in.

    Raises:
        InputError: an image cannot be read.
    """
    root = common_folder([os.path.abspath(path) for path in labels.paths])
    images, boxes = [], []
    paths = progress(labels.paths, "Reading the sizes of images")
    rows = zip(paths, labels.labels.tolist(), _facts(labels), strict=True)
    for number, (path, label, facts) in enumerate(rows, 1):
        width, height = image_size(path)
        images.append({"id": number, "file_name": os.path.relpath(path, root), "width": width, "height": height})
        named = {"identity": label} if label >= 0 else {}
        box = {
            "id": number,
            "image_id": number,
            "category_id": 1,
            "bbox": [0, 0, width, height],
            "area": width * height,
            "iscrowd": 0,
            "attributes": named | facts,
        }
        boxes.append(box | ({"track_id": label} if label >= 0 else {}))
    return {
        "info": {"description": "pseudo labels of unlabelled crops: track_id is the cluster", "root": root},
        "images": images,
        "annotations": boxes,
        "categories": [{"id": 1, "name": "person", "supercategory": ""}],
    }


def as_fiftyone(labels: PseudoLabels) -> dict[str, Any]:
    """The file labels.json of a FiftyOneImageClassificationDataset, whose images stay where they are.

    The label of an image is its cluster as text; one in noise has none. Camera and distance are attributes.
    """
    found = {
        os.path.abspath(path): {"label": str(label), "attributes": facts} if label >= 0 else None
        for path, label, facts in zip(labels.paths, labels.labels.tolist(), _facts(labels), strict=True)
    }
    classes = [str(label) for label in np.unique(labels.labels[labels.labels >= 0])]
    return {"classes": classes, "labels": found}


def _facts(labels: PseudoLabels) -> list[dict[str, Any]]:
    """The camera of each image and its distance to the centroid, as far as they are known."""
    return [
        ({"camera": camera} if camera else {}) | ({} if np.isnan(distance) else {"distance": round(distance, 6)})
        for camera, distance in zip(labels.cameras, labels.distances.tolist(), strict=True)
    ]


def image_size(path: str) -> tuple[int, int]:
    """(width, height) as stored.

    Raises:
        InputError: the image cannot be read.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except OSError as error:
        raise InputError(f"cannot read the image {path}: {error}") from error


Track = tuple[str, str]  # camera and the name of the track in it


class Identities(NamedTuple):
    """The identity of each track, from 1, and how it was found."""

    of_track: dict[Track, int]
    named: int  # tracks that have the identity of a cluster
    unknown: int  # whose crops are noise, or that have none
    refused: int  # whose cluster already has another track in the same frame


def identify_tracks(
    tracks: Sequence[Track | None], labels: np.ndarray, frames: Mapping[Track, Sequence[int]]
) -> Identities:
    """One identity per person across cameras: that of the cluster which most crops of a track are in.

    Nobody is in two places of a frame: of two tracks of one camera that share a frame, only the one with more crops in
    the cluster gets its identity. All other tracks get identities of their own.

    Args:
        tracks: the track of each of N crops, None if it is not known.
        labels: (N,) int64, 0..C-1, -1 for noise.
        frames: the frames of every track, also of those without a crop.
    """
    votes: dict[Track, Counter[int]] = defaultdict(Counter)
    for track, label in zip(tracks, labels.tolist(), strict=True):
        if track is not None and label >= 0:
            votes[track][label] += 1
    # The cluster with most crops, the first of equal ones; then the tracks by that number.
    best = {
        track: min(votes[track].items(), key=lambda vote: (-vote[1], vote[0])) for track in frames if votes.get(track)
    }
    taken: dict[tuple[str, int], set[int]] = defaultdict(set)  # camera and label -> frames
    found: dict[Track, int] = {}
    for track, (label, _) in sorted(best.items(), key=lambda item: (-item[1][1], item[0])):
        occupied = taken[track[0], label]
        if occupied.isdisjoint(frames[track]):
            occupied.update(frames[track])
            found[track] = label + 1
    named = len(found)
    free = int(labels.max(initial=-1)) + 2
    for track in frames:
        if track not in found:
            found[track] = free
            free += 1
    return Identities(found, named, len(frames) - len(best), len(best) - named)


def read_tracks(folder: Path) -> dict[str, list[list[str]]]:
    """Camera -> rows of its file ``CAMERA.txt`` in MOTChallenge's form: frame, id, left, top, width, height, ...

    Raises:
        InputError: no such file, or one of another form; the message names the line.
    """
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise InputError(f"--tracks {folder}: no file CAMERA.txt there; it must hold a tracker's file for each camera")
    found = {}
    for path in files:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            lines = csv.reader(file)
            rows = []
            for fields in filter(any, lines):
                if len(fields) < 6 or not _is_whole(fields[0]) or not _is_whole(fields[1]):
                    raise InputError(f"{path}, line {lines.line_num} is not frame,id,left,top,width,height,...")
                rows.append([field.strip() for field in fields])
        found[path.stem] = rows
    if not any(found.values()):
        raise InputError(f"--tracks {folder}: the files there are empty")
    return found


def _is_whole(text: str) -> bool:
    try:
        return float(text).is_integer()
    except ValueError:
        return False


def track_of(camera: str, fields: Sequence[str]) -> Track:
    """The track of a row of ``read_tracks``; a tracker may write its number as 7 or as 7.0."""
    return camera, str(int(float(fields[1])))
