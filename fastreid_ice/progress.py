"""Progress of long work: a bar on a terminal, and one line in the log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Collection, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

# Below fast-reid's logger, whose handlers write to the terminal and to OUTPUT_DIR/log.txt; so in every module.
logger = logging.getLogger(f"fastreid.{__name__}")


class Bar(tqdm):
    """tqdm's bar without its thread, since loader workers are forked while the bar is shown."""

    monitor_interval = 0


def progress(items: Collection[T], title: str) -> Iterator[T]:
    """Yields ``items`` while a bar on the terminal, if there is one, shows how many are done and how many are left.

    A single item has no bar, which would only show that it is not done.

    The log gets one line at the end, with the time taken.
    """
    start = time.perf_counter()
    shown = sys.stderr.isatty() and len(items) != 1
    yield from Bar(items, title, miniters=1, dynamic_ncols=True) if shown else items
    logger.info("%s: %d done in %.1f s", title, len(items), time.perf_counter() - start)
