"""fast-reid's log where it would mislead a person or fail."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import InputError


def log_any_name() -> None:
    r"""Lets fast-reid's log, once it is set up, take file names of any bytes: what is no text shows as ``\udce9``."""
    for handler in logging.getLogger("fastreid").handlers:
        stream = getattr(handler, "stream", None)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def filtering(name: str, rule: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Within the block the logger ``name`` drops the records for which ``rule`` is false; it may change others."""
    logger = logging.getLogger(name)
    logger.addFilter(rule)
    try:
        yield
    finally:
        logger.removeFilter(rule)


def for_people(record: logging.LogRecord) -> bool:
    """Of fast-reid's training loop: the first epoch is 1, and what an InputError says needs no traceback."""
    start = "Starting training from epoch "
    if record.getMessage().startswith(start):
        record.msg = f"{start}{int(record.msg.removeprefix(start)) + 1}"
    return not (record.exc_info and isinstance(record.exc_info[1], InputError))
