"""One of several processes that train together: how it meets the others, agrees with them, and ends.

torchrun, or whatever else starts the processes, sets these variables in each: ``RANK``, ``WORLD_SIZE``,
``LOCAL_RANK``, ``LOCAL_WORLD_SIZE``, and for where they meet, ``MASTER_ADDR`` and ``MASTER_PORT``.
"""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import ModuleType
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ErrorHandler, record

from .errors import InputError

T = TypeVar("T")

VARIABLES = ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TASKS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # how many processes srun or mpirun has started
TIMEOUT = timedelta(minutes=30)  # how long a process waits for the others; the first one's clustering must take less

_ended_groups: list[dist.ProcessGroup] = []  # kept, since their destructors can wait for ever; see ``_leave``
ENDED = "ended"  # key in the store: why a process ended the run


def is_in_group(num_machines: int = 1) -> bool:
    """Whether this process was started as one of a group, which may still be a group of one.

    Args:
        num_machines: how many processes outside a group srun or mpirun may start.

    Raises:
        InputError: they started more.
    """
    if "RANK" in os.environ:
        return True
    for variable in TASKS:
        if int(os.environ.get(variable, 1)) > num_machines:
            raise InputError(
                f"{os.environ[variable]} processes were started ({variable}) that do not know of one another (RANK is "
                "not set) and would each train a model of their own; start one torchrun on each machine instead"
            )
    return False


def run_id() -> str:
    """The name that torchrun gives to this run and its restarts; empty without torchrun."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "")


def run_in_group(function: Callable[[dist.Store], Any]) -> None:
    """Runs ``function(store)`` in one process of a group, and ends the process.

    An InputError or an interrupt is reported once on each machine, by the first process there that meets it. Any other
    error is recorded for the agent that started the process, which shows it.

    Args:
        function: receives the store in which the processes meet, for ``of_first`` and ``process_group``.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        record(_run, _WholeErrorFile())(function)
    except SystemExit as end:
        _leave(end.code)
    except Exception:
        last_attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT") == os.environ.get("TORCHELASTIC_MAX_RESTARTS")
        if not (os.environ.get("TORCHELASTIC_ERROR_FILE") and last_attempt):
            traceback.print_exc()
        _leave(1)
    _leave(0)


class _WholeErrorFile(ErrorHandler):
    """Gives the file of an error its name when it is complete.

    An agent whose other process was killed may read it at any moment, and would fail itself at half of it.
    """

    def record_exception(self, error: BaseException) -> None:
        if not (file := os.environ.get("TORCHELASTIC_ERROR_FILE")):
            return
        part = os.environ["TORCHELASTIC_ERROR_FILE"] = f"{file}.part"
        try:
            super().record_exception(error)
            os.replace(part, file)
        finally:
            os.environ["TORCHELASTIC_ERROR_FILE"] = file


def _leave(code: int | str | None) -> NoReturn:
    """Ends the process like ``sys.exit``, but without destructors.

    That of a process group joins threads: if a peer is gone it can wait for ever, or abort the process, which would
    hide the reported error.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _terminate(number: int, frame: object) -> NoReturn:
    """Ends the process as an error would, so that a run still writes its files: the agent sends SIGTERM to the rest."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)


def _run(function: Callable[[dist.Store], Any]) -> None:
    missing = [variable for variable in VARIABLES if variable not in os.environ]
    if missing:
        sys.exit(f"error: RANK is set and {missing[0]} is not; start the processes with torchrun, which sets both")
    store, rank, world_size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    if store.check([ENDED]):
        sys.exit(1)  # a restart cannot help: the reason was reported
    try:
        function(_new_part(store, rank, world_size))
    except InputError as error:
        _end(store, f"error: {error}", 1)
    except KeyboardInterrupt as error:
        _end(store, str(error), 128 + signal.SIGINT)
    except Exception:
        # A process that waits for one that has ended fails too. The store may be gone with its machine.
        with suppress(RuntimeError):
            if store.check([ENDED]):
                _end(store, store.get(ENDED).decode(), 1)
        raise


def _new_part(store: dist.Store, rank: int, world_size: int) -> dist.Store:
    """An empty part of the store: an agent's store still holds what the processes before a restart left in it.

    The first process names the part. It greets each of the others until that one answers, since a name may belong to a
    process that no longer exists.
    """
    own_name = uuid.uuid4().hex
    if rank > 0:
        store.set(f"name of {rank}", own_name)
        part = store.get(f"greeting to {own_name}").decode()
        store.set(f"answer of {rank} to {part}", "")
        return dist.PrefixStore(part, store)
    for other in range(1, world_size):
        deadline = time.monotonic() + TIMEOUT.total_seconds()
        while True:
            store.set(f"greeting to {store.get(f'name of {other}').decode()}", own_name)
            try:
                store.wait([f"answer of {other} to {own_name}"], timedelta(seconds=1))
                break
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
    return dist.PrefixStore(own_name, store)


def _end(store: dist.Store, sentence: str, code: int) -> NoReturn:
    first = True
    with suppress(RuntimeError):
        store.set(ENDED, sentence)
        first = store.add(f"told on machine {os.environ.get('GROUP_RANK', '')}", 1) == 1
    if first and sentence:
        sys.stderr.write(f"{sentence}\n")
    sys.exit(code)


@contextmanager
def process_group(store: dist.Store, backend: str, *, timeout: timedelta = TIMEOUT) -> Iterator[None]:
    """Makes all processes torch's process group, and those of one machine fast-reid's local group.

    Args:
        store: where they meet.
        backend: "nccl", with which each process uses the GPU of its local rank; or "gloo".
        timeout: how long a process waits for the others.
    """
    rank, world_size, local_rank, local_size = (
        int(os.environ[variable]) for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    if backend == "nccl":
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, _cores() // local_size))
    group = dist.PrefixStore("group", store)
    dist.init_process_group(backend, store=group, rank=rank, world_size=world_size, timeout=timeout)
    for first in range(0, world_size, local_size):
        ranks = range(first, first + local_size)
        local_group = dist.new_group(list(ranks), timeout=timeout)
        if rank in ranks:
            _comm()._LOCAL_PROCESS_GROUP = local_group
    # After an error the others no longer answer: the process ends without waiting for them.
    yield
    _comm().synchronize()
    _ended_groups.append(dist.group.WORLD)
    dist.destroy_process_group()


def of_first(function: Callable[[], T], store: dist.Store | None = None) -> T:
    """Returns in every process what ``function`` returns in the first one; called in all of them.

    Args:
        function: its result, for instance a checkpoint that only the first machine has, can be pickled.
        store: carries small results to the other processes while there is no process group yet.

    Raises:
        InputError: in every process, as ``function`` raised it in the first.
    """
    if store is not None:
        if os.environ["RANK"] == "0":
            store.set("of first", pickle.dumps(_outcome(function)))
        return _result(pickle.loads(store.get("of first")))
    comm = _comm()
    if comm.get_world_size() == 1:
        return function()
    outcome = [_outcome(function) if comm.is_main_process() else None]
    dist.broadcast_object_list(outcome, src=0, group=comm._get_global_gloo_group())
    return _result(outcome[0])


def in_each(function: Callable[[], T]) -> T:
    """Returns the result of ``function``, once it has returned in every process; called in all of them.

    Raises:
        InputError: in every process, that of the first process in which ``function`` raised it.
    """
    value, refusal = _outcome(function)
    for found in _comm().all_gather(refusal):
        _result((None, found))
    return value


def _comm() -> ModuleType:
    """fast-reid's part of this; imported late, since with fastreid comes the engine, which imports this module."""
    from fastreid.utils import comm

    return comm


def _outcome(function: Callable[[], T]) -> tuple[T | None, str | None]:
    try:
        return function(), None
    except InputError as error:
        return None, str(error)


def _result(outcome: tuple[T, str | None]) -> T:
    value, refusal = outcome
    if refusal is not None:
        raise InputError(refusal)
    return value


def _cores() -> int:
    """Cores that this process may use; in a container or under taskset these are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
