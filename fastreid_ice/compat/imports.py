"""Importing fastreid. Nothing here may import fastreid at the top."""

from __future__ import annotations

import collections
import importlib
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec

from ._registry import patch

_during_import = ExitStack()


@patch
def mapping_alias() -> None:
    """``from collections import Mapping`` fails on Python >= 3.10 (evaluation/testing.py, data/build.py).

    Until fastreid imports Mapping from collections.abc.
    """
    if not hasattr(collections, "Mapping"):
        _during_import.enter_context(_temporary_mapping())


@patch
def torch_six() -> None:
    """``from torch._six import string_classes`` fails on torch >= 2.0 (data/build.py).

    Until fastreid stops importing torch._six.
    """
    if "torch._six" not in sys.modules and find_spec("torch._six") is None:
        _during_import.enter_context(_temporary_torch_six())


@patch
def import_fastreid() -> None:
    """Import the modules that need the two aliases, then remove the aliases, so that no other package finds them.

    Until the two patches above are gone.
    """
    with _during_import, warnings.catch_warnings():
        # The ranking is replaced (evaluation.py) and ROC is off by default, so users need not compile them.
        warnings.filterwarnings("ignore", message="Cython .* evaluation")
        for name in ("data", "engine", "evaluation.rank", "evaluation.roc", "evaluation.testing", "modeling", "solver"):
            importlib.import_module(f"fastreid.{name}")


@contextmanager
def _temporary_mapping() -> Iterator[None]:
    collections.Mapping = Mapping  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del collections.Mapping  # type: ignore[attr-defined]


@contextmanager
def _temporary_torch_six() -> Iterator[None]:
    stub = types.ModuleType("torch._six")
    stub.string_classes = (str, bytes)  # type: ignore[attr-defined]
    sys.modules["torch._six"] = stub
    try:
        yield
    finally:
        del sys.modules["torch._six"]
