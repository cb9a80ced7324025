"""Files that are either complete or absent, and an output folder that belongs to one run."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

from .errors import InputError
from .processes import of_first

PART = ".ice-part"  # suffix of a file that is being written; no user's file should have it


@contextmanager
def replacing(path: str, mode: str = "wb", **options: str) -> Iterator[IO]:
    """A new file that replaces ``path``, complete and on the disk, when the block ends without an error.

    Until then it has another name in the same folder. After an error it is removed; after a kill, by ``remove_parts``.
    ``mode`` and ``options`` are those of ``open``.
    """
    part = path + PART
    try:
        with open(part, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise
    # Make the new name survive a power cut too, if the file system can sync a folder.
    with suppress(OSError):
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A new folder that gets the name ``folder``, which may be that of an empty one, when the block ends.

    Until then it has another name beside it. After an error nothing is left of it.
    """
    folder = folder.absolute()
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        scratch.mkdir()
        yield scratch
        scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def remove_parts(folder: str) -> None:
    """Removes the unfinished files of a killed run from ``folder``."""
    for part in Path(folder).glob(f"*{PART}"):
        if part.is_file():
            part.unlink()


@contextmanager
def explaining_writes(path: str) -> Iterator[None]:
    """Turns a file system error into one sentence about ``path``.

    Raises:
        InputError: in place of an OSError, such as that of a full disk.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; earlier files are kept, and when this is fixed "
            "the same command with --resume continues from the last checkpoint"
        ) from error


@contextmanager
def owned_folder(folder: str) -> Iterator[None]:
    """Creates ``folder`` and locks other runs out of it until the block or the process ends, in whatever way.

    Called in every process of a run; the first one holds the lock, and the others wait for that.

    Raises:
        InputError: another run holds it, or it cannot be written to; in every process.
    """
    locks = []  # has one only in the first process
    of_first(lambda: locks.append(_lock(folder)))
    try:
        yield
    finally:
        for lock in locks:
            lock.close()


def make_folder(folder: str) -> None:
    """Creates the ``OUTPUT_DIR`` of a run if it is missing.

    Raises:
        InputError: it cannot be created.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        raise InputError(f"OUTPUT_DIR {folder!r} cannot be written to: {reason}; choose another OUTPUT_DIR") from error


def _lock(folder: str) -> BinaryIO:
    make_folder(folder)
    try:
        file = open(os.path.join(folder, ".lock"), "ab")  # noqa: SIM115, open for as long as the run
        try:
            # Only this process holds it. Loader workers, which may outlive it by seconds, would inherit a flock.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a file system without locks
                raise
    except BlockingIOError as error:
        raise InputError(
            f"OUTPUT_DIR {folder!r}: another run is writing there; wait for its end, or choose another OUTPUT_DIR"
        ) from error
    except OSError as error:
        raise InputError(
            f"OUTPUT_DIR {folder!r} cannot be written to: {error.strerror}; choose another OUTPUT_DIR"
        ) from error
    return file
