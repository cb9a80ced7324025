"""What the checks of all kinds share: how a failure is told, and random numbers that do not reach the caller."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

Check = tuple[str, Callable[[], None]]  # its name, and what raises ``Failed`` or any error of the class


class Failed(Exception):
    """What a check has found, as the end of a sentence."""


def require(holds: Any, found: str) -> None:
    """
    Raises:
        Failed: ``holds`` is not true.
    """
    if not holds:
        raise Failed(found)


def run_checks(subject: Callable[..., Any], checks: Iterable[Check]) -> None:
    """Runs the checks in order; the generators of Python, NumPy and torch are then as they were.

    Raises:
        AssertionError: the first that fails, or that the class ends by an error of its own, which is the cause.
    """
    with preserved_generators():
        for name, check in checks:
            try:
                check()
            except Failed as failure:
                raise AssertionError(f"{name_of(subject)} fails {name!r}: {failure}") from failure.__cause__
            except Exception as error:
                raise AssertionError(f"{name_of(subject)} fails {name!r}: it {raised(error)}") from error


def raised(error: Exception) -> str:
    """An error as the end of a sentence, in one line."""
    return f"raised {type(error).__name__}: {' '.join(str(error).split())}"


def name_of(subject: Callable[..., Any]) -> str:
    """A class by its name, also where its ``from_config`` is called; a ``functools.partial`` with its keywords, too."""
    if isinstance(subject, partial):
        keywords = ", ".join(f"{key}={value!r}" for key, value in subject.keywords.items())
        return name_of(subject.func) + (f"({keywords})" if keywords else "")
    owner = getattr(subject, "__self__", None)
    return owner.__name__ if isinstance(owner, type) else getattr(subject, "__name__", type(subject).__name__)


@contextmanager
def preserved_generators() -> Iterator[None]:
    """What runs within may seed and draw: the global generators of the CPU are then as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
