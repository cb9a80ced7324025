"""What a person says about images, as the file corrections.csv: answers are added to it and taken back."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..files import replacing

COLUMNS = ("image", "relation", "other")


class Row(NamedTuple):
    """One fact: ``image`` and ``other`` are the ``same`` person or ``different`` ones, ``image`` shows the ``person``
    named ``other``, or ``nobody``, and ``other`` is empty."""

    image: str
    relation: str
    other: str


class Changed(InputError):
    """The file is no longer as it was read."""


class AnswerFile:
    """The rows of a file of corrections, which is written whole or not at all.

    Args:
        path: the file; it is made with the first row.

    Attributes:
        rows: in the order of the file.

    Raises:
        InputError: it cannot be read, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        self._content = b""
        self.read()

    def read(self) -> None:
        """Reads the file again, with what others have written to it.

        Raises:
            InputError: as above.
        """
        content = self._present()
        text = content.decode("utf-8-sig", "surrogateescape")
        lines = csv.reader(io.StringIO(text, newline=""))
        whole = not text.strip() or tuple(next(lines)) == COLUMNS
        rows = [Row(*line) for line in lines if any(line) and len(line) == len(COLUMNS)] if whole else []
        if not whole:
            raise InputError(f"{self.path} is not a file of corrections: its first line must be {','.join(COLUMNS)}")
        self.rows, self._content = rows, content

    def add(self, rows: Sequence[Row]) -> None:
        """Writes further rows.

        Raises:
            Changed: somebody else has changed the file since it was read. It stays as it is.
            InputError: it cannot be written. It stays as it was.
        """
        self._write([*self.rows, *rows])

    def take_back(self) -> Row:
        """Removes the last row, of which there is one, and returns it.

        Raises:
            InputError: as above.
        """
        *rows, last = self.rows
        self._write(rows)
        return last

    def _write(self, rows: list[Row]) -> None:
        if self._present() != self._content:
            raise Changed(
                f"{self.path} has been changed by somebody else; nothing was overwritten. Load this page again to go "
                "on with the file as it is now"
            )
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
        content = text.getvalue().encode("utf-8", "surrogateescape")
        try:
            with replacing(str(self.path)) as file:
                file.write(content)
        except OSError as error:
            raise InputError(
                f"cannot write {self.path}: {error.strerror}; this answer is not saved, earlier ones are"
            ) from error
        self.rows, self._content = rows, content

    def _present(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}") from error
