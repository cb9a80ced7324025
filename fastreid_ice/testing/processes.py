"""Runs a function, or the checks of a class, in several processes of this machine."""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from operator import itemgetter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ..config import import_files
from ..errors import InputError
from ..processes import process_group
from .checks import name_of, run_checks
from .steps import first_change

TIMEOUT = timedelta(minutes=5)  # a process that waits longer for another one fails


def in_processes(function: Callable[..., Any], number: int, *args: Any) -> list[Any]:
    """Calls ``function(*args)`` in several processes under torchrun's agent, over gloo on the CPU.

    The processes are forked from a server of ``multiprocessing`` that imports this package once, so that only the first
    call waits for it.

    Args:
        function: defined at the top level of a module. Its ``args`` and its result must be picklable. It returns plain
            values: a tensor cannot be read after its process has ended.
        number: number of processes.

    Returns:
        The results, by rank.

    Raises:
        ChildFailedError: the function failed in one process; the others are ended.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=number,
        run_id="tests",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="forkserver",
    )
    torch.multiprocessing.set_forkserver_preload([__name__])
    results = elastic_launch(config, _in_process)(dict(os.environ), function, *args)
    return [results[rank] for rank in range(number)]


@record
def _in_process(environment: dict[str, str], function: Callable[..., Any], *args: Any) -> Any:
    os.environ.update(environment)  # the server's may be older
    torch.multiprocessing.set_start_method(None, force=True)  # so that loaders start workers as in training
    store, _, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
    with process_group(store, "gloo", timeout=TIMEOUT):
        try:
            return function(*args)
        except Exception:
            # The agent reports the process that ends first. One that fails since another one no longer answers waits
            # until the agent ends it.
            if store.add("failed", 1) > 1:
                time.sleep(60)
            raise


def check_in_processes(
    subjects: Sequence[Callable[..., Any]], outcome: Callable[[Any], dict[str, Tensor]], number: int
) -> None:
    """Compares the outcome of each subject in several processes with that in one, unless ``number`` is 1.

    Args:
        subjects: classes, or callables that return their objects.
        outcome: computes named tensors from a subject.
        number: number of processes.

    Raises:
        AssertionError: an outcome differs, or a process failed.
        InputError: a subject cannot be sent to a process.
    """
    if number == 1:
        return
    name = f"{number} processes equal one"
    expected: list[dict[str, Tensor]] = []
    for subject in subjects:
        run_checks(subject, [(name, lambda subject=subject: expected.append(outcome(subject)))])
    sent = _pickled(subjects, outcome, expected)
    try:
        changes = in_processes(_changes, number, *sent)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        message = failure.message["message"] if isinstance(failure.message, dict) else failure.message
        names = ", ".join(map(name_of, subjects))
        raise AssertionError(f"{names} fails {name!r}: process {rank} failed: {' '.join(message.split())}") from error
    for i, subject in enumerate(subjects):
        differing = {rank: found[i] for rank, found in enumerate(changes) if found[i]}
        if differing:
            rank, change = min(differing.items(), key=itemgetter(1))
            raise AssertionError(f"{name_of(subject)} fails {name!r}: {change} differs in process {rank}")


def _pickled(subjects: Sequence[Callable[..., Any]], *others: Any) -> tuple[bytes, dict[str, str]]:
    """The pickled subjects and arguments, and the files of the modules that define the subjects."""
    files = {}
    for subject in subjects:
        try:
            pickle.dumps(subject)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise InputError(
                f"{name_of(subject)} cannot be sent to the processes of its check ({error}); define it at the top "
                "level of a module, or pass processes=1 to skip this check"
            ) from error
        module = sys.modules[_class(subject).__module__]
        if module.__name__ != "__main__" and "." not in module.__name__:
            files[module.__name__] = str(module.__file__)
    return pickle.dumps((subjects, *others)), files


def _class(subject: Any) -> Any:
    """The class or function behind a ``partial`` or a ``from_config``."""
    return _class(subject.func) if isinstance(subject, partial) else getattr(subject, "__self__", subject)


def _changes(pickled: bytes, files: dict[str, str]) -> list[str | None]:
    # A file that a config imports is not on sys.path.
    import_files(file for name, file in files.items() if importlib.util.find_spec(name) is None)
    subjects, outcome, expected = pickle.loads(pickled)
    return [
        first_change(one, outcome(subject), tolerance=1e-9) for subject, one in zip(subjects, expected, strict=True)
    ]
