"""How the C library keeps freed memory, which decides a good part of the speed on a CPU."""

from __future__ import annotations

import ctypes
import os
import sys

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "LD_PRELOAD")

LARGEST = 32 * 2**20  # bytes; glibc accepts no larger one
KEPT = 2**31 - 1  # bytes, the largest number that it takes


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees, up to 2 GiB, for what it allocates next; on Linux with glibc.

    A training step allocates and frees tensors of some megabytes. By default glibc returns such memory at once, so that
    the system clears the same pages at every step. The peak is not affected. Nothing changes where the user has set one
    of glibc's variables for this, or preloads another allocator.

    Returns:
        Whether it does so now.
    """
    if sys.platform != "linux" or any(os.environ.get(variable) for variable in _VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library, such as musl
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST) and mallopt(_TRIM_THRESHOLD, KEPT))
