"""How far long work is: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Collection, Iterator
from typing import TypeVar

T = TypeVar("T")

LOG_SECONDS = 30.0
# Below fast-reid's logger, whose handlers write to the terminal and to OUTPUT_DIR/log.txt; so in every module.
logger = logging.getLogger(f"fastreid.{__name__}")


def progress(items: Collection[T], title: str) -> Iterator[T]:
    """Yields ``items`` while telling how many are done.

    On a terminal a bar rewrites itself. The log gets a line every half minute and one at the end, with the time taken.
    """
    bar = sys.stderr.isatty()
    total = len(items)
    start = last = time.perf_counter()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.perf_counter()
        if bar:
            filled = 30 * done // total
            sys.stderr.write(f"\r{title} [{'=' * filled:30}] {done}/{total}")
        if now - last > LOG_SECONDS:
            last = now
            logger.info("%s: %d of %d", title, done, total)
    if bar:
        sys.stderr.write("\n")
    logger.info("%s: %d done in %.1f s", title, total, time.perf_counter() - start)
