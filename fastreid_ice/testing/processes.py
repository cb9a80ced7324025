"""Several processes on this machine, and how classes of one's own get there."""

from __future__ import annotations

import importlib.util
import pickle
import sys
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
    """Calls ``function(*args)`` in that many processes under torchrun's agent, over gloo on the CPU.

    Args:
        function: at the top level of a module, with ``args`` that can be pickled. What it returns, too: plain values,
            since a tensor of a process that has ended may not be read any more.
        number: how many processes.

    Returns:
        What it gave in each process, by rank.

    Raises:
        ChildFailedError: it failed in one, which ends the others.
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
    )
    results = elastic_launch(config, _in_process)(function, *args)
    return [results[rank] for rank in range(number)]


@record
def _in_process(function: Callable[..., Any], *args: Any) -> Any:
    torch.multiprocessing.set_start_method(None, force=True)  # of the workers of a loader, as in a process of a run
    store, _, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
    with process_group(store, "gloo", timeout=TIMEOUT):
        return function(*args)


def check_in_processes(
    subjects: Sequence[Callable[..., Any]], outcome: Callable[[Any], dict[str, Tensor]], number: int
) -> None:
    """Compares what several processes make of the subjects with what one makes, unless ``number`` is 1.

    Args:
        subjects: classes, or what makes their objects.
        outcome: what a process makes of a subject, by name.
        number: how many processes.

    Raises:
        AssertionError: one differs, or ended a process by an error.
        InputError: one cannot be sent to a process.
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
        raise AssertionError(f"{names} fails {name!r}: process {rank} ended by {' '.join(message.split())}") from error
    for i, subject in enumerate(subjects):
        differing = {rank: found[i] for rank, found in enumerate(changes) if found[i]}
        if differing:
            rank, change = min(differing.items(), key=itemgetter(1))
            raise AssertionError(f"{name_of(subject)} fails {name!r}: {change} is another in process {rank}")


def _pickled(subjects: Sequence[Callable[..., Any]], *others: Any) -> tuple[bytes, dict[str, str]]:
    """The subjects and what else a process needs, and the files of the modules that define the subjects."""
    files = {}
    for subject in subjects:
        try:
            pickle.dumps(subject)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise InputError(
                f"{name_of(subject)} cannot be sent to the processes of its check ({error}); define it at the top "
                "level of a module, or leave this check out by processes=1"
            ) from error
        module = sys.modules[_class(subject).__module__]
        if module.__name__ != "__main__" and "." not in module.__name__:
            files[module.__name__] = str(module.__file__)
    return pickle.dumps((subjects, *others)), files


def _class(subject: Any) -> Any:
    """What is called in the end: a class, also where its ``from_config`` is called, or a function."""
    return _class(subject.func) if isinstance(subject, partial) else getattr(subject, "__self__", subject)


def _changes(pickled: bytes, files: dict[str, str]) -> list[str | None]:
    # A file that a config imports stands in no folder where modules are looked for.
    import_files(file for name, file in files.items() if importlib.util.find_spec(name) is None)
    subjects, outcome, expected = pickle.loads(pickled)
    return [
        first_change(one, outcome(subject), tolerance=1e-9) for subject, one in zip(subjects, expected, strict=True)
    ]
