"""Runs the benchmarks, which are in benchmarks/ of a checkout and are not installed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> None:
    if not (CHECKOUT / "benchmarks" / "measuring.py").is_file():
        sys.exit(
            "error: bench needs a checkout, since benchmarks/ is not installed; run it where `pip install -e .` was run"
        )
    sys.path.insert(0, str(CHECKOUT))
    import_module("benchmarks.__main__").main(arguments)
