"""Makes fastreid 1.4.0 run on today's Python, torch and numpy, with or without a GPU; and nothing else.

fastreid 1.4.0 is the last release; it was written for torch 1.13 and CUDA. Each patch is one function that says in its
docstring what breaks without it and until when it is needed. Patches that depend on the host (the torch version, a
GPU, ...) look before they act; the others repair what is wrong in 1.4.0 everywhere. Importing ``fastreid_ice`` applies
all of them.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Collection
from importlib import metadata

from ._registry import PATCHES

SUPPORTED_VERSION = "1.4.0"

_applied: set[str] = set()


def apply(skip: Collection[str] = ()) -> None:
    """Import fastreid and patch it. Calling it again does nothing.

    Args:
        skip: names of patches to leave out, keys of ``PATCHES``. For tests, which show that each patch is needed.

    Raises:
        ImportError: fastreid is not installed.
    """
    _check_version()
    # In this order: the first makes `import fastreid` possible, the others import it.
    for module in ("imports", "data", "modeling", "training", "parallel", "evaluation"):
        importlib.import_module(f"{__name__}.{module}")
        for name in [name for name in PATCHES if name not in _applied]:
            _applied.add(name)
            if name not in skip:
                PATCHES[name]()


def _check_version() -> None:
    install = f"`pip install --no-deps fastreid=={SUPPORTED_VERSION}`"
    try:
        # fastreid.__version__ says 1.3 in the 1.4.0 release.
        version = metadata.version("fastreid")
    except metadata.PackageNotFoundError:
        raise ImportError(f"fastreid-ice needs fastreid, which is not installed: run {install}") from None
    if version != SUPPORTED_VERSION and not _applied:
        warnings.warn(f"fastreid {version} was never tried with fastreid-ice: run {install}", stacklevel=3)
