"""What is known of images beside their pixels: camera, track and time, from file names or from a table."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from fastreid.data.datasets.bases import ImageDataset

from ..errors import InputError

KEY = "DATASETS.FOLDER.METADATA"


class Facts(NamedTuple):
    """What is known of an image; None for what is not."""

    camera: str | None = None
    track: str | None = None
    time: float | None = None


NAMES = Facts._fields
Rule = Callable[[str, Sequence[str]], list[Facts]]  # from a folder below the root, "" for itself, and paths below it


def pattern_rule(rule: str) -> tuple[Rule, bool]:
    """What a regular expression with the named groups camera, track and time finds in paths; a group may be left out.

    Returns:
        The rule, which raises InputError for a path that the expression does not fit and for a time that is no number;
        and whether it gives cameras.

    Raises:
        InputError: no such expression.
    """
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise InputError(f"{KEY} {rule!r} is neither a .csv file nor a regular expression: {error}") from error
    if not pattern.groupindex or pattern.groupindex.keys() - set(NAMES):
        raise InputError(
            f"{KEY} {rule!r} must be a .csv file, or a regular expression with some of the named groups "
            "(?P<camera>...), (?P<track>...) and (?P<time>...), and no others"
        )

    def facts_of(folder: str, paths: Sequence[str]) -> list[Facts]:
        matches = [pattern.search(path) for path in paths]
        if None in matches:
            raise InputError(
                f"{KEY} {rule!r} does not fit {matches.count(None)} of {len(paths)} paths, the first: "
                f"{paths[matches.index(None)]!r}"
            )
        found = zip(paths, matches, strict=True)
        return [_facts(match.groupdict(), f"{KEY}: {path!r}") for path, match in found if match]

    return facts_of, "camera" in pattern.groupindex


def table_rule(file: Path, images: Collection[str]) -> tuple[Rule, bool]:
    """What a CSV file says of images: a column ``path`` and at least one of camera, track and time, in any order.

    An empty field is not known, and nor is an image without a line. A byte order mark and blank lines, which
    spreadsheets write, are accepted.

    Args:
        file: the CSV file.
        images: the paths that it may name.

    Returns:
        The rule, and whether it gives cameras.

    Raises:
        InputError: no such file, or one with another form: the message names the line.
    """
    table: dict[str, Facts] = {}
    lines_of: dict[str, int] = {}
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as opened:
            lines = csv.reader(opened)
            header = [name.strip() for name in next(lines, [])]
            _check_header(file, header)
            for fields in filter(any, lines):
                where = f"{KEY} {str(file)!r}, line {lines.line_num}"
                if len(fields) != len(header):
                    raise InputError(f"{where} has {len(fields)} fields, not {len(header)} ({','.join(header)})")
                row = dict(zip(header, fields, strict=True))
                path = PurePosixPath(row.pop("path")).as_posix()
                if path in table:
                    raise InputError(f"{where} names {path!r} again, after line {lines_of[path]}; keep one of them")
                if path not in images:
                    raise InputError(
                        f"{where}: there is no image {path!r}; paths are relative to DATASETS.ROOT, with '/' between "
                        "folders"
                    )
                table[path], lines_of[path] = _facts(row, where), lines.line_num
    except OSError as error:
        raise InputError(f"{KEY} {str(file)!r}: {error.strerror}") from error
    except csv.Error as error:
        raise InputError(f"{KEY} {str(file)!r}, line {lines.line_num}: {error}") from error

    def facts_of(folder: str, paths: Sequence[str]) -> list[Facts]:
        return [table.get(f"{folder}/{path}" if folder else path, Facts()) for path in paths]

    return facts_of, "camera" in header


def _check_header(file: Path, header: list[str]) -> None:
    others = [name for name in header if name not in ("path", *NAMES)]
    if "path" not in header or len(header) < 2 or others or len(set(header)) < len(header):
        raise InputError(
            f"{KEY} {str(file)!r}, line 1 is {','.join(header)!r}: it must name the column path and some of "
            f"{', '.join(NAMES)}, each once"
        )


def _facts(texts: dict[str, str | None], where: str) -> Facts:
    """The values of an image by name; empty texts are not known."""
    known = {name: text for name, text in texts.items() if text}
    time = known.pop("time", None)
    if time is None:
        return Facts(**known)
    try:
        number = float(time)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise InputError(f"{where}: the time {time!r} is not a number of at least 0")
    return Facts(**known, time=number)


# Where the names in fast-reid's datasets contain the frame number. fast-reid reads the camera itself.
# The identity, with which these names begin, is not read.
FRAMES = {
    "Market1501": re.compile(r"_c[0-9]s(?P<sequence>[0-9])_(?P<frame>[0-9]+)_[0-9]+\.jpg$"),
    "DukeMTMC": re.compile(r"_c[0-9]_f(?P<frame>[0-9]+)\.jpg$"),
}
SEQUENCE = 10**8  # more frames than a sequence has: one begins after another, as their frames are counted from 0


def facts_of(dataset: ImageDataset, paths: Sequence[str]) -> list[Facts]:
    """What a dataset knows of its images beside cameras: by its method ``facts_of``, or times by ``FRAMES``."""
    if hasattr(dataset, "facts_of"):
        return dataset.facts_of(paths)
    pattern = FRAMES.get(type(dataset).__name__)
    matches = [pattern.search(path) if pattern else None for path in paths]
    return [Facts(time=_time(**match.groupdict()) if match else None) for match in matches]


def _time(frame: str, sequence: str = "0") -> float:
    return float(int(sequence) * SEQUENCE + int(frame))
