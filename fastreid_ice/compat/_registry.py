"""The list of patches, and the function by which a patch replaces a function or a class."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

PATCHES: dict[str, Callable[[], None]] = {}


def patch(function: Callable[[], None]) -> Callable[[], None]:
    """Register a patch under its function's name; patches are applied in the order of their registration."""
    PATCHES[function.__name__] = function
    return function


def replace(old: Any, new: Any) -> None:
    """Replace ``old`` by ``new`` in every fastreid module that has it, under any name."""
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == "fastreid":
            for name, value in list(vars(module).items()):
                if value is old:
                    setattr(module, name, new)
