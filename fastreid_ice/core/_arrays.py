"""Conversion between tensors and arrays, and computation over blocks of rows."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

_BLOCK = 1024  # rows per task; fixed, so that results do not depend on the number of threads


def to_numpy(values: Any) -> np.ndarray:
    """A tensor from any device, an array or a sequence as an array; without a copy where possible."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def map_blocks(kernel: Callable[..., Any], num_rows: int, *arguments: Any, block: int = _BLOCK) -> list[Any]:
    """Run ``kernel(start, stop, *arguments)`` over blocks of rows, in threads; results in row order.

    The kernels release the interpreter lock. These are plain threads and not numba's: numba's do not survive a fork,
    which data loaders do, and some of its threading layers do not allow two callers at once.
    """
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        starts = range(0, max(num_rows, 1), block)  # at least one block, so that there are arrays to join
        return list(pool.map(lambda start: kernel(start, min(start + block, num_rows), *arguments), starts))
