"""What an inspection has found, kept in the user's cache folder, so that unchanged files are not read again."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(f"fastreid.{__name__}")

COLUMNS = ("path", "bytes", "time", "width", "height", "digest")


class Inspected(NamedTuple):
    """A readable image.

    Attributes:
        bytes, time: of its file, see ``stamp``.
        width, height: as shown.
        digest: a hash of its bytes, b"" if no other file could be equal.
    """

    bytes: int
    time: int
    width: int
    height: int
    digest: bytes = b""


def recall(paths: Sequence[str]) -> dict[str, Inspected]:
    """The images of an earlier inspection whose files still have the same length and time of change."""
    import pyarrow
    from pyarrow import parquet

    try:
        columns = parquet.read_table(_file_of(paths)).to_pydict()
        rows = zip(*(columns[name] for name in COLUMNS), strict=True)
        kept = {path: Inspected(*values) for path, *values in rows}
    except (OSError, KeyError, pyarrow.ArrowInvalid):  # none yet, or that of another version
        return {}
    found = {}
    for path in paths:
        known = kept.get(os.fsencode(path))
        if known is not None and (known.bytes, known.time) == stamp(path):
            found[path] = known
    return found


def remember(found: Mapping[str, Inspected]) -> None:
    """Keeps these images in place of those of the last inspection in the same folder."""
    import pyarrow
    from pyarrow import parquet

    file = _file_of([*found])
    rows = ((os.fsencode(path), *image) for path, image in found.items())
    table = pyarrow.table([pyarrow.array(column) for column in zip(*rows, strict=True)], names=COLUMNS)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as scratch:
            parquet.write_table(table, scratch)
        os.replace(scratch.name, file)
    except OSError as error:
        logger.info("What was found is not kept, so the next run reads all images again: %s", error)


def stamp(path: str) -> tuple[int, int] | None:
    """Length and time of change (ns) of a file, by which it is known to be unchanged; None if it is gone."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _file_of(paths: Sequence[str]) -> Path:
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.blake2b(os.fsencode(folder), digest_size=16).hexdigest()
    return cache / "fastreid-ice" / "images" / f"{name}.parquet"
