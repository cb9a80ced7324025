"""Shared by all checks: how a failure is reported, and how the caller's random generators are preserved."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

Check = tuple[str, Callable[[], None]]  # name, and a function that raises ``Failed`` or an error of the class


class Failed(Exception):
    """A check failed. The message completes the sentence "MyLoss fails 'name': ..."."""


def require(holds: Any, found: str) -> None:
    """
    Raises:
        Failed: ``holds`` is not true.
    """
    if not holds:
        raise Failed(found)


def run_checks(subject: Callable[..., Any], checks: Iterable[Check]) -> None:
    """Runs the checks in order and restores the generators of Python, NumPy and torch.

    Raises:
        AssertionError: a check failed, or the class raised an error, which is then the cause.
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
    """The error in one line, to complete a sentence."""
    return f"raised {type(error).__name__}: {' '.join(str(error).split())}"


def name_of(subject: Callable[..., Any]) -> str:
    """The name of a class or of the class of a ``from_config``; for a ``functools.partial`` with its keywords."""
    if isinstance(subject, partial):
        keywords = ", ".join(f"{key}={value!r}" for key, value in subject.keywords.items())
        return name_of(subject.func) + (f"({keywords})" if keywords else "")
    owner = getattr(subject, "__self__", None)
    return owner.__name__ if isinstance(owner, type) else getattr(subject, "__name__", type(subject).__name__)


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Restores the global generators of the CPU at the end, so that code within may seed them and draw."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
