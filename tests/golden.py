"""Reference inputs, with the outputs of published code."""

from __future__ import annotations

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "data" / "golden"


def load_golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of one reference file by name."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return dict(arrays)
