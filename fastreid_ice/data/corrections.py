"""The file corrections.csv: what a person has said about images, which every clustering keeps."""

from __future__ import annotations

import csv
import os
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ..core import Constraints, correction_constraints
from ..errors import InputError

HEADER = ("image", "relation", "other")
RELATIONS = ("same", "different", "person", "nobody")


class Correction(NamedTuple):
    """A row of the file: ``image`` and the image ``other`` show one person ("same") or two ("different"), ``image``
    shows the person with the name ``other`` ("person"), or it shows no person ("nobody", ``other`` is empty).
    """

    line: int
    image: str
    relation: str
    other: str

    def __str__(self) -> str:
        return f"line {self.line} ({self.image!r} {self.relation}{f' {self.other!r}' if self.other else ''})"


def read_corrections(path: str, images: Sequence[str]) -> Constraints:
    """What a file of corrections says about N images.

    Args:
        path: a CSV file with the columns image, relation and other; a byte order mark and blank lines are accepted.
        images: N distinct paths. A name in the file that is none of them is made absolute, as they are, to compare.

    Raises:
        InputError: no such file, or one with another form, an unknown image, or rows that contradict each other; the
            message names the file and the lines.
    """
    return corrections_of(read_rows(path), images, path)


def read_rows(path: str) -> list[Correction]:
    """The rows of a file of corrections, in its order.

    Raises:
        InputError: no such file, or one with another form; the message names the line.
    """
    rows = []
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            lines = csv.reader(file)
            header = tuple(name.strip() for name in next(lines, ()))
            if header != HEADER:
                raise InputError(f"{path}, line 1 is {','.join(header)!r}: it must be {','.join(HEADER)!r}")
            for fields in lines:
                if any(field.strip() for field in fields):
                    rows.append(_correction(path, lines.line_num, fields))
    except OSError as error:
        raise InputError(f"CORRECTIONS {path}: {error.strerror}") from error
    except csv.Error as error:
        raise InputError(f"{path}, line {lines.line_num}: {error}") from error
    return rows


def _correction(path: str, line: int, fields: list[str]) -> Correction:
    where = f"{path}, line {line}"
    if len(fields) != len(HEADER):
        raise InputError(f"{where} has {len(fields)} fields, not {len(HEADER)} ({','.join(HEADER)})")
    image, relation, other = fields[0], fields[1].strip(), fields[2]
    if relation not in RELATIONS:
        raise InputError(f"{where}: the relation {relation!r} is none of {', '.join(RELATIONS)}")
    if relation == "person":
        other = other.strip()
    if not image or bool(other) == (relation == "nobody"):
        needed = {"person": "a name as other", "nobody": "nothing as other"}.get(relation, "an image as other")
        raise InputError(f"{where}: {relation} needs an image and {needed}")
    return Correction(line, image, relation, other)


def corrections_of(rows: Iterable[Correction], images: Sequence[str], path: str) -> Constraints:
    """``read_corrections`` of rows that have been read from the file ``path``, which only messages name.

    Of rows about the same two images the last counts, and so does the last of person and nobody about one image. Time
    and memory are linear in rows and images, but for the pairs of named persons.
    """
    number = _Numbers(images)
    pairs: dict[tuple[int, int], Correction] = {}
    alone: dict[int, Correction] = {}
    for row in rows:
        here = number.of(row, row.image, path)
        if row.relation in ("person", "nobody"):
            alone[here] = row
            continue
        there = number.of(row, row.other, path)
        if here == there and row.relation == "different":
            raise InputError(f"{path}, {row}: an image is not different from itself; remove the line")
        if here != there:
            pairs[min(here, there), max(here, there)] = row
    same = {pair: row for pair, row in pairs.items() if row.relation == "same"}
    different = {pair: row for pair, row in pairs.items() if row.relation == "different"}
    named = {image: row for image, row in alone.items() if row.relation == "person"}
    people = {name: place for place, name in enumerate(sorted({row.other for row in named.values()}))}
    names = np.full(len(images), -1)
    names[list(named)] = [people[row.other] for row in named.values()]
    nobody = np.zeros(len(images), bool)
    nobody[[image for image, row in alone.items() if row.relation == "nobody"]] = True
    _check_nobody(path, same, {image: row for image, row in alone.items() if row.relation == "nobody"})
    try:
        return correction_constraints(
            len(images), same=_array(same), different=_array(different), names=names, nobody=nobody
        )
    except ValueError as error:
        raise InputError(f"{path}: {_contradiction(same, different, named)}") from error


class _Numbers:
    """The number of an image by its name, as it is or as an absolute path."""

    def __init__(self, images: Sequence[str]) -> None:
        self.exact = {str(name): place for place, name in enumerate(images)}
        self.absolute: dict[str, int] = {}

    def of(self, row: Correction, name: str, path: str) -> int:
        if name in self.exact:
            return self.exact[name]
        if not self.absolute:
            self.absolute = {os.path.abspath(image): place for image, place in self.exact.items()}
        try:
            return self.absolute[os.path.abspath(name)]
        except KeyError:
            raise InputError(
                f"{path}, line {row.line}: there is no image {name!r} among the {len(self.exact)}; name images as the "
                "column path of labels.csv does, or remove the line"
            ) from None


def _array(pairs: dict[tuple[int, int], Correction]) -> np.ndarray:
    return np.array(list(pairs), np.int64).reshape(-1, 2)


def _check_nobody(path: str, same: dict[tuple[int, int], Correction], nobody: dict[int, Correction]) -> None:
    for pair, row in same.items():
        for image in pair:
            if image in nobody:
                raise InputError(f"{path}: {row} and {nobody[image]} contradict each other; remove one of them")


def _contradiction(
    same: dict[tuple[int, int], Correction],
    different: dict[tuple[int, int], Correction],
    named: dict[int, Correction],
) -> str:
    """The shortest chain of rows from one image of a forbidden pair to the other, or from one name to another."""
    steps: dict[int | str, list[tuple[int | str, Correction]]] = defaultdict(list)
    links = [*same.items(), *(((image, row.other), row) for image, row in named.items())]
    for (one, other), row in links:
        steps[one].append((other, row))
        steps[other].append((one, row))
    starts = [(one, other, [row]) for (one, other), row in different.items()]
    # From each name to any other one.
    starts += [(name, None, []) for name in sorted({row.other for row in named.values()})]
    for start, end, last in starts:
        if chain := _chain(steps, start, end):
            rows = sorted({*chain, *last})
            return f"{', '.join(map(str, rows[:-1]))} and {rows[-1]} contradict each other; remove one of them"
    raise AssertionError("there is no contradiction")


def _chain(
    steps: dict[int | str, list[tuple[int | str, Correction]]], start: int | str, end: int | str | None
) -> list[Correction]:
    """The rows of the shortest way to ``end``, or without one to any other name; none if there is no way."""
    before: dict[int | str, tuple[int | str, Correction] | None] = {start: None}
    waiting = deque([start])
    while waiting:
        node = waiting.popleft()
        if node == end or (end is None and isinstance(node, str) and node != start):
            rows = []
            while step := before[node]:
                node, row = step
                rows.append(row)
            return rows
        for other, row in steps[node]:
            if other not in before:
                before[other] = (node, row)
                waiting.append(other)
    return []
