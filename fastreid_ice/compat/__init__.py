"""Makes fastreid 1.4.0 run on today's Python, torch and numpy, with or without a GPU; and nothing else.

fastreid 1.4.0 is the last release; it was written for torch 1.13 and CUDA. Each patch is one function whose docstring
says what breaks without it and until when it is needed. Patches that depend on the host (the torch version, a GPU, ...)
check before they act; the others fix errors that 1.4.0 has everywhere. Once ``fastreid_ice`` is imported, importing
fastreid applies all of them.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Collection, Sequence
from importlib import metadata
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from ._registry import PATCHES

SUPPORTED_VERSION = "1.4.0"
INSTALL = f"`pip install --no-deps fastreid=={SUPPORTED_VERSION}`"

_applied: set[str] = set()


def apply(skip: Collection[str] = ()) -> None:
    """Import fastreid and patch it. Calling it again does nothing.

    Args:
        skip: names of patches to leave out, keys of ``PATCHES``; for the tests that show that each patch is needed.

    Raises:
        ImportError: fastreid is not installed.
    """
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Waiting)]
    _check_version()
    # In this order: the first makes `import fastreid` possible, the others import it.
    for module in ("imports", "data", "modeling", "training", "parallel", "evaluation"):
        importlib.import_module(f"{__name__}.{module}")
        for name in [name for name in PATCHES if name not in _applied]:
            _applied.add(name)
            if name not in skip:
                PATCHES[name]()


def apply_on_import(then: Callable[[], None]) -> None:
    """Calls ``apply()`` and ``then()`` once fastreid is imported, which may be now; imports nothing before that."""
    if sys.modules.get("fastreid"):
        apply()
        then()
    else:
        sys.meta_path.insert(0, _Waiting(then))


class _Waiting(MetaPathFinder):
    """Asks the other finders for fastreid, and applies the patches after its import."""

    def __init__(self, then: Callable[[], None]) -> None:
        self.then = then

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "fastreid":
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, found), None)
        if spec is None:
            warnings.warn(
                f"fastreid is not installed, so only fastreid_ice.core can be used; for the rest run {INSTALL}",
                stacklevel=2,
            )
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            apply()
            self.then()

        spec.loader.exec_module = exec_module  # only on this loader, which belongs to this import
        return spec


def _check_version() -> None:
    try:
        # fastreid.__version__ says 1.3 in the 1.4.0 release.
        version = metadata.version("fastreid")
    except metadata.PackageNotFoundError:
        raise ImportError(f"fastreid-ice needs fastreid, which is not installed: run {INSTALL}") from None
    if version != SUPPORTED_VERSION and not _applied:
        warnings.warn(f"fastreid {version} is not tested with fastreid-ice: run {INSTALL}", stacklevel=3)
