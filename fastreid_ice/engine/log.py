"""Corrections to fast-reid's log where it would mislead or fail."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import InputError


def log_any_name() -> None:
    r"""Makes fast-reid's log, once it is set up, accept file names of any bytes: invalid ones appear as ``\udce9``."""
    for handler in logging.getLogger("fastreid").handlers:
        stream = getattr(handler, "stream", None)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def filtering(name: str, rule: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Within the block, the logger ``name`` drops records for which ``rule`` is false; ``rule`` may change others."""
    logger = logging.getLogger(name)
    logger.addFilter(rule)
    try:
        yield
    finally:
        logger.removeFilter(rule)


def for_people(record: logging.LogRecord) -> bool:
    """A rule for fast-reid's training loop: epochs count from 1, and an InputError is logged without traceback."""
    start = "Starting training from epoch "
    if record.getMessage().startswith(start):
        record.msg = f"{start}{int(record.msg.removeprefix(start)) + 1}"
    return not (record.exc_info and isinstance(record.exc_info[1], InputError))
