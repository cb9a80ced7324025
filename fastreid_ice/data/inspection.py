"""Inspecting every image before training: sizes, unreadable files, duplicates."""

from __future__ import annotations

import hashlib
import logging
import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from fastreid.data.data_utils import read_image

from ..errors import InputError
from ..progress import progress
from .inspected import Inspected, recall, remember, stamp

SHOWN = 10

logger = logging.getLogger(f"fastreid.{__name__}")


def inspect_images(paths: Sequence[str], *, unreadable: str, size: tuple[int, int] | None = None) -> None:
    """Reads every image as training will, and logs the smallest and the largest, unreadable images and duplicates.

    With ``size`` it also logs to what size the images are brought, beside their median shape.

    Duplicates are files with the same bytes; only files of the same length and image size are compared. Decoding runs
    in threads; memory is linear in the number of images. Files that have not changed since the last inspection of the
    folder are not read again.

    Args:
        paths: the files.
        size: (H, W) of the crops.
        unreadable: what happens if an image cannot be read, ``DATALOADER.UNREADABLE``: "error" or "skip".

    Raises:
        InputError: an image cannot be read and ``unreadable`` is "error", or fewer than two can.
    """
    known = recall(paths)
    new = [path for path in paths if path not in known]
    if known:
        logger.info("%d of %d images have not changed since they were read last", len(known), len(paths))
    read = dict(zip(new, _in_threads(_read, new, "Reading images"), strict=True))
    reasons = {path: reason for path, reason in read.items() if isinstance(reason, str)}
    images = {path: known[path] if path in known else read[path] for path in paths if path not in reasons}
    groups = _groups({path: (image.bytes, image.width, image.height) for path, image in images.items()})
    candidates = [path for group in groups for path in group if not images[path].digest]
    for path, digest in zip(
        candidates, _in_threads(_digest, candidates, "Comparing images of equal size"), strict=True
    ):
        images[path] = images[path]._replace(digest=digest)
    if new and images:
        remember(images)
    if reasons:
        logger.warning("%d of %d images cannot be read:%s", len(reasons), len(paths), _first(list(reasons.values())))
    if reasons and unreadable == "error":
        raise InputError(
            f"{len(reasons)} of {len(paths)} training images cannot be read, the first: {next(iter(reasons))!r}; "
            "remove them, or leave them out with DATALOADER.UNREADABLE skip"
        )
    if len(images) < 2:
        raise InputError(f"only {len(images)} of {len(paths)} training images can be read")

    smallest, largest = (pick(images, key=lambda path: images[path].width * images[path].height) for pick in (min, max))
    logger.info(
        "Sizes (width x height): from %d x %d (%s) to %d x %d (%s)",
        *(images[smallest].width, images[smallest].height, smallest),
        *(images[largest].width, images[largest].height, largest),
    )
    if size:
        logger.info(
            "The median image is %.2f times as wide as high; all become %d x %d (width x height): INPUT.SIZE_TRAIN and "
            "INPUT.SIZE_TEST, height first, set another size",
            statistics.median(image.width / image.height for image in images.values()),
            *reversed(size),
        )
    same = _groups({path: image.digest for path, image in images.items() if image.digest})
    copies = [f"{path} = {group[0]}" for group in same for path in group[1:]]
    if copies:
        logger.warning("Copies of other images, byte for byte: %d%s", len(copies), _first(copies))


def find_unreadable(paths: Sequence[str]) -> list[str]:
    """Reads every image; returns for each one that cannot be read a sentence that names it and the reason, in order."""
    return [found for found in _in_threads(_read, paths, "Reading images") if isinstance(found, str)]


def _read(path: str) -> Inspected | str:
    """An image, or the reason why it cannot be read."""
    before = stamp(path)
    try:
        size = read_image(path).size
    except OSError as error:
        return str(error)
    return Inspected(*(before or (0, 0)), *size)


def _digest(path: str) -> bytes:
    try:
        return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).digest()
    except OSError:  # deleted since, so equal to no other
        return os.fsencode(path)


def _in_threads(work: Callable[[str], Any], paths: Sequence[str], title: str) -> Iterator[Any]:
    """The result of ``work`` for each path, in order. Pillow releases Python's lock while it decodes."""
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        results = pool.imap(work, paths, chunksize=16)
        for _ in progress(paths, title):
            yield next(results)


def _groups(values: dict[str, Hashable]) -> list[list[str]]:
    """The groups of two or more paths with equal values."""
    groups = defaultdict(list)
    for path, value in values.items():
        groups[value].append(path)
    return [group for group in groups.values() if len(group) > 1]


def _first(lines: list[str]) -> str:
    more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "".join(f"\n  {line}" for line in [*lines[:SHOWN], *more])
