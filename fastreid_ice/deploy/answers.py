"""What a person says about images, as the file corrections.csv: answers are added to it and taken back."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from ..core import Constraints
from ..data import Correction, corrections_of, read_rows
from ..data.corrections import HEADER
from ..errors import InputError
from ..files import replacing


class Changed(InputError):
    """The file is no longer as it was read."""


def copy_earlier(source: Path, path: Path) -> None:
    """Copies the corrections that a run was trained with to a file for further ones, unless there is one already.

    Raises:
        InputError: they are no longer there, or the file cannot be written.
    """
    if path.exists():
        return
    try:
        content = source.read_bytes()
        with replacing(str(path)) as file:
            file.write(content)
    except OSError as error:
        raise InputError(
            f"the run was trained with CORRECTIONS {source}, which cannot be copied to {path}: {error.strerror}; "
            f"restore it, or begin without it by a file {path} of the one line {','.join(HEADER)}"
        ) from error


class AnswerFile:
    """The rows of a file of corrections, which is written whole or not at all.

    Args:
        path: the file; it is made with the first row.
        images: N distinct paths, the images that it may name.

    Attributes:
        rows: in the order of the file.
        known: what they say of the images, together.

    Raises:
        InputError: it cannot be read, holds something else, or rows that contradict each other.
    """

    def __init__(self, path: Path, images: Sequence[str]) -> None:
        self.path, self.images = path, images
        self.rows: list[Correction] = []
        self.known: Constraints
        self._content: bytes | None = None  # None without the file
        self.read()

    def read(self) -> None:
        """Reads the file again, with what others have written to it.

        Raises:
            InputError: as above.
        """
        content = self._present()
        rows = [] if content is None else read_rows(str(self.path))
        known = corrections_of(rows, self.images, str(self.path))
        self.rows, self.known, self._content = rows, known, content

    def add(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """Writes further rows (image, relation, other).

        Raises:
            Changed: somebody else has changed the file since it was read. It stays as it is.
            InputError: they contradict earlier ones, or it cannot be written. It stays as it was.
        """
        more = [Correction(line, *row) for line, row in enumerate(rows, len(self.rows) + 2)]
        try:
            corrections_of([*self.rows, *more], self.images, str(self.path))
        except InputError as error:
            raise InputError(f"This answer is not saved, since it contradicts earlier ones. {error}") from error
        self._write([*self.rows, *more])

    def take_back(self) -> None:
        """Removes the last row.

        Raises:
            InputError: as above, or there is none.
        """
        if not self.rows:
            raise InputError("there is no answer to take back")
        self._write(self.rows[:-1])

    def _write(self, rows: Sequence[Correction]) -> None:
        if self._present() != self._content:
            raise Changed(
                f"{self.path} has been changed by somebody else; nothing was overwritten. Load this page again to go "
                "on with the file as it is now"
            )
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([HEADER, *(row[1:] for row in rows)])
        try:
            with replacing(str(self.path)) as file:
                file.write(text.getvalue().encode("utf-8", "surrogateescape"))
        except OSError as error:
            raise InputError(
                f"cannot write {self.path}: {error.strerror}; this answer is not saved, earlier ones are"
            ) from error
        self.read()

    def _present(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}") from error
