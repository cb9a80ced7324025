"""Unsupervised person re-identification for fast-reid: ICE and DCMIP from unlabelled crops.

Import this package before fastreid. The import itself is cheap: only when fastreid is imported, by any module, does
``compat`` make fastreid 1.4.0 run on this Python and torch, and do the meta-architecture, head, losses, clusterers,
datasets and hooks register under their names. ``fastreid_ice.core`` never imports fastreid and works without it.
"""

import sys
from importlib import import_module
from typing import Any

from . import compat
from .errors import InputError
from .moved import MovedFinder

__version__ = "0.1.0"

__all__ = ["InputError", "add_ice_config", "clusterers", "compat", "data", "engine", "losses", "modeling"]

_ROOMS = ("config", "losses", "clusterers", "modeling", "data", "reporting", "engine")


def _register() -> None:
    """Imports everything that registers, unless a room is importing fastreid: it then registers its own classes."""
    if not any(f"{__name__}.{room}" in sys.modules for room in _ROOMS):
        import_module(f"{__name__}.engine")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module(f"{__name__}.engine")
    if name == "add_ice_config":
        return import_module(f"{__name__}.config").add_ice_config
    return import_module(f"{__name__}.{name}")


compat.apply_on_import(_register)
sys.meta_path.append(MovedFinder())
