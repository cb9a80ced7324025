"""Conversion at the border between tensors and arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor


def to_numpy(values: Any) -> np.ndarray:
    """A tensor from any device, an array or a sequence as an array; without a copy where possible."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
