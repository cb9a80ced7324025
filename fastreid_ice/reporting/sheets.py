"""Chooses the clusters and images that a report shows, and makes their pictures."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from fastreid.data.data_utils import read_image
from PIL import Image

from .labels import PseudoLabels

CLUSTERS, IMAGES, NOISE_IMAGES = 6, 14, 56  # clusters per sheet, images per cluster, images of noise
THUMBNAIL = (144, 192)  # pixels, across and down, at most
QUALITY = 75  # of JPEG
SMALL, SMALL_QUALITY = (64, 64), 50  # of pictures in search results, WebP
SMALL_TOTAL = 3_000_000  # characters of base64 for all of them
TILE_AREA = 10_600  # square pixels of a picture on a sheet
TILE_ASPECTS = (0.4, 2.5)  # width over height, at least and at most


@dataclass(frozen=True)
class Group:
    """Images of one cluster, or of noise.

    Attributes:
        label: the cluster, -1 for noise.
        caption: a description of it.
        images: rows of the images that are shown.
    """

    label: int
    caption: str
    images: np.ndarray


@dataclass(frozen=True)
class Sheet:
    """A contact sheet: a title, a sentence that says how clusters were chosen, and the groups, possibly none."""

    title: str
    rule: str
    groups: list[Group]


def contact_sheets(clustering: PseudoLabels, *, seed: int) -> list[Sheet]:
    """Sheets of the largest, random, the most cross-camera and the most doubtful clusters, and of noise.

    A cluster's images are evenly spaced in the order of distance to its centroid, from the nearest to the farthest.

    Args:
        clustering: that of N images.
        seed: for what is drawn at random.
    """
    distances, random = clustering.distances, np.random.default_rng(seed)
    clustered = clustering.labels >= 0
    names = np.unique(clustering.labels[clustered])  # a file of labels may have gaps, and any numbers
    labels = np.where(clustered, np.searchsorted(names, clustering.labels), -1)
    sizes, present = np.bincount(labels[clustered]), np.arange(len(names))
    order = np.lexsort((distances, labels))[np.count_nonzero(~clustered) :]
    starts = np.cumsum(sizes) - sizes
    means = np.bincount(labels[clustered], distances[clustered]) / sizes
    cameras, spread = _camera_spread(labels, clustering.cameras)

    def group(label: int) -> Group:
        places = np.linspace(0, sizes[label] - 1, min(sizes[label], IMAGES)).round().astype(int)
        caption = f"{sizes[label]} images"
        caption += f", {cameras[label]} {'camera' if cameras[label] == 1 else 'cameras'}" if cameras[label] else ""
        caption += "" if np.isnan(means[label]) else f", mean distance {means[label]:.3f}"
        return Group(int(names[label]), caption, order[starts[label] + places])

    def first(scores: np.ndarray, among: np.ndarray = present) -> list[Group]:
        ranked = among[np.argsort(-scores[among], kind="stable")]
        return [group(label) for label in ranked[:CLUSTERS]]

    drawn = np.sort(random.permutation(present)[:CLUSTERS])
    noise = np.sort(random.permutation(np.flatnonzero(~clustered))[:NOISE_IMAGES])
    return [
        Sheet("Largest clusters", "Those with the most images.", first(sizes)),
        Sheet("Random clusters", f"Drawn with seed {seed}.", [group(label) for label in drawn]),
        Sheet(
            "Most cross-camera clusters",
            "Those whose images spread most evenly over most cameras (the highest entropy of the cameras' shares).",
            first(spread, present[cameras[present] > 1]),
        ),
        Sheet(
            "Most doubtful clusters",
            "Those whose images lie farthest from their centroid on average (the largest mean distance).",
            first(means, present[~np.isnan(means[present])]),
        ),
        Sheet(
            "Noise",
            f"Images in no cluster, drawn with seed {seed}; the distance is that to the nearest cluster.",
            [Group(-1, f"{np.count_nonzero(~clustered)} images", noise)] if len(noise) else [],
        ),
    ]


def _camera_spread(labels: np.ndarray, cameras: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """For each cluster (C,): how many known cameras it has, and the entropy of their shares of its images."""
    count = labels.max(initial=-1) + 1
    rows = (labels >= 0) & (np.array(cameras, dtype=object) != "")
    names = np.unique(np.array(cameras)[rows], return_inverse=True)[1]
    pairs, images = np.unique(np.stack((labels[rows], names)), axis=1, return_counts=True)
    shares = images / np.bincount(pairs[0], images, minlength=count)[pairs[0]]
    return (
        np.bincount(pairs[0], minlength=count),
        np.bincount(pairs[0], -shares * np.log(shares), minlength=count),
    )


class Picture(NamedTuple):
    """A small picture as a data URI, and its width over its height."""

    uri: str
    aspect: float


def thumbnail(path: str) -> str | None:
    """A small JPEG of an image, as training reads it, as a data URI; None if it is missing or cannot be read."""
    picture = picture_of(path)
    return picture and picture.uri


def picture_of(path: str) -> Picture | None:
    """The same with its shape."""
    try:
        image = read_image(path)
    except OSError:
        return None
    aspect = image.width / image.height
    return Picture(f"data:image/jpeg;base64,{_text(small_jpeg(image))}", aspect)


def tile_size(aspect: float) -> tuple[int, int]:
    """Width and height in pixels of a picture of such a width over its height, always of about the same area."""
    aspect = min(max(aspect, TILE_ASPECTS[0]), TILE_ASPECTS[1])
    return round(math.sqrt(TILE_AREA * aspect)), round(math.sqrt(TILE_AREA / aspect))


def small_jpeg(image: Image.Image) -> bytes:
    """The JPEG file of an RGB image, which is reduced to at most 144 x 192 pixels."""
    return _reduced(image, THUMBNAIL, "JPEG", quality=QUALITY, optimize=True)


def small_pictures(
    clustering: PseudoLabels, *, without: Collection[int] = (), total: int = SMALL_TOTAL
) -> tuple[dict[int, str], bool]:
    """Row -> a WebP of at most 64 x 64 pixels in base64, for as many images as fit into ``total`` characters.

    The first images of all clusters come first, then their second ones, and so on, with noise as one more cluster. So
    no cluster is without a picture while others have many.

    Args:
        clustering: that of N images.
        without: rows that need none.
        total: a limit of the characters, which bounds the size of the page.

    Returns:
        The pictures, without images that are missing or cannot be read; and whether all others fitted.
    """
    order = np.argsort(clustering.labels, kind="stable")
    starts = np.flatnonzero(np.diff(clustering.labels[order], prepend=-2))
    places = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    found: dict[int, str] = {}
    for row in order[np.argsort(places, kind="stable")].tolist():
        if row in without:
            continue
        try:
            image = read_image(clustering.paths[row])
        except OSError:
            continue
        data = _text(_reduced(image, SMALL, "WEBP", quality=SMALL_QUALITY))
        total -= len(data)
        if total < 0:
            return found, False
        found[row] = data
    return found, True


def _reduced(image: Image.Image, size: tuple[int, int], form: str, **options: Any) -> bytes:
    """The file of an image, which is reduced to at most ``size``."""
    image.thumbnail(size)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def shown(sheets: Iterable[Sheet]) -> list[int]:
    """The rows of all images that the sheets show, each once."""
    return sorted({int(row) for sheet in sheets for group in sheet.groups for row in group.images})
