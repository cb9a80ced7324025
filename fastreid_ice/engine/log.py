"""Corrections to fast-reid's log where it would mislead or fail."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastreid.utils.logger import setup_logger

from ..errors import InputError

_of_last_run: list[logging.Handler] = []


def start_log(set_up: Callable[[], None]) -> None:
    """Calls ``set_up``, which sets up fast-reid's log of a run, in place of that of an earlier run in this process.

    fast-reid would go on writing to the log of the earlier one, and print every line twice.
    """
    logger = logging.getLogger("fastreid")
    if _of_last_run:
        setup_logger.cache_clear()  # or a run in the same folder would have no log
    for handler in _of_last_run:
        logger.removeHandler(handler)
    others = list(logger.handlers)
    set_up()
    _of_last_run[:] = [handler for handler in logger.handlers if handler not in others]


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
