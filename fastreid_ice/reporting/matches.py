"""The results of a search: a table for the terminal, JSON for programs, and a page with the pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tabulate import tabulate

from ..progress import progress
from .chart import readable
from .pages import render, short_names, write_text
from .sheets import thumbnail

TEMPLATE = "matches.html"
COLUMNS = ("rank", "file", "camera", "similarity", "distance")


@dataclass(frozen=True)
class Match:
    """An image that was found.

    Attributes:
        rank: 1, 2, ...
        path: the file.
        camera: its name, "" if not known.
        similarity: the cosine to the query, in [-1, 1].
        distance: by which it is ranked: 1 - cosine, or the re-ranked distance.
    """

    rank: int
    path: str
    camera: str
    similarity: float
    distance: float


@dataclass(frozen=True)
class QueryMatches:
    """A query, its camera, "" if not known, and what was found, the nearest first, possibly nothing."""

    path: str
    camera: str
    matches: list[Match]


def matches_table(found: Sequence[QueryMatches]) -> str:
    """A table for each query, under its name, as printable text."""
    parts = []
    for query in found:
        rows = [
            (match.rank, readable(match.path), match.camera or "-", f"{match.similarity:.3f}", f"{match.distance:.3f}")
            for match in query.matches
        ]
        camera = f" (camera {query.camera})" if query.camera else ""
        table = tabulate(rows, COLUMNS, disable_numparse=True, colalign=("right", "left", "left", "right", "right"))
        parts.append(f"{readable(query.path)}{camera}\n{table if rows else 'nothing was found'}")
    return "\n\n".join(parts)


def write_matches_json(path: Path, found: Sequence[QueryMatches], *, search: dict[str, object]) -> None:
    r"""Writes ``{"search": ..., "queries": [{"path", "camera", "matches": [...]}]}``, completely or not at all.

    A match has the keys rank, path, camera, similarity and distance. Bytes of a path that are not UTF-8 are ``\udce9``,
    as Python's ``os.fsencode`` expects them.

    Args:
        path: the file.
        found: the results.
        search: how they were found.

    Raises:
        InputError: the file cannot be written.
    """
    content = {"search": search, "queries": [asdict(query) for query in found]}
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_matches_page(path: Path, found: Sequence[QueryMatches], *, words: Sequence[str]) -> None:
    """Writes one HTML page with the pictures of all queries and of what was found; it needs no network and no script.

    Args:
        path: the file.
        found: the results.
        words: sentences that say how they were found.

    Raises:
        InputError: the file cannot be written.
    """
    files = [place for query in found for place in (query.path, *(match.path for match in query.matches))]
    distinct = list(dict.fromkeys(files))
    pictures = {file: thumbnail(file) for file in progress(distinct, "Reading pictures for the page")}
    names = list(dict.fromkeys(match.path for query in found for match in query.matches))
    short, common = short_names(names)
    page = render(
        TEMPLATE,
        found=found,
        words=[readable(sentence) for sentence in words],
        common=common,
        names={file: readable(file) for file in distinct} | dict(zip(names, short, strict=True)),
        queries=[readable(query.path) for query in found],
        pictures=pictures,
        lost=sum(picture is None for picture in pictures.values()),
    )
    write_text(path, page)
