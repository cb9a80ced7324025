"""Starts the processes of a run, on CPU or GPU. fastreid's own launcher knows NCCL only."""

from __future__ import annotations

import os
import pickle
import signal
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fastreid.utils import comm

from ..errors import InputError


class ProcessFailed(RuntimeError):
    """A process of a run ended before its work was done. The message is one sentence: which one, and how.

    ``traceback`` is that of the error in the process, as text; empty where the process was killed.
    """

    def __init__(self, sentence: str, traceback: str = "") -> None:
        super().__init__(sentence)
        self.traceback = traceback


def launch(
    main_func: Callable[..., Any],
    num_processes_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
    *,
    backend: str | None = None,
    timeout: timedelta = timedelta(minutes=30),
) -> None:
    """Run ``main_func(*args)`` in each process of a run; call it on every machine.

    One process alone runs in place. Several are spawned, which imports the main script again in each: guard it with
    ``if __name__ == "__main__"``. When one of them fails or is killed, the others are ended.

    Args:
        main_func: a function that can be pickled.
        num_processes_per_machine: with NCCL process i of a machine gets GPU i.
        num_machines: how many machines call this.
        machine_rank: which of them this is, from 0.
        dist_url: where the processes meet, such as ``tcp://10.0.0.1:23456``; None or "auto": a free port here.
        args: the arguments of ``main_func``.
        backend: "nccl" or "gloo"; None: NCCL where each process gets a GPU of its own, gloo otherwise.
        timeout: how long a process waits for the others; the clustering of the first one must take less.

    Raises:
        ValueError: a number of processes or machines, or the backend, that this machine cannot serve.
        InputError: as ``main_func`` raised it in one of several processes.
        ProcessFailed: one of several processes raised another error, or ended by a signal or an exit code.
    """
    if num_processes_per_machine < 1 or not 0 <= machine_rank < num_machines:
        raise ValueError(
            f"cannot start {num_processes_per_machine} processes on machine {machine_rank} of {num_machines}: "
            "at least one process, and machine ranks from 0 to machines - 1"
        )
    world_size = num_machines * num_processes_per_machine
    if world_size == 1:
        main_func(*args)
        return

    if dist_url in (None, "auto"):
        if num_machines > 1:
            raise ValueError("several machines need a --dist-url that all of them reach, such as tcp://10.0.0.1:23456")
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    gpus = torch.cuda.device_count()
    if backend is None:
        backend = "nccl" if gpus >= num_processes_per_machine and dist.is_nccl_available() else "gloo"
    elif backend == "nccl" and gpus < num_processes_per_machine:
        raise ValueError(
            f"NCCL needs a GPU for each of the {num_processes_per_machine} processes, and there are {gpus}"
        )

    context = mp.spawn(
        _run_process,
        args=(
            main_func,
            args,
            num_processes_per_machine,
            num_machines,
            machine_rank,
            dist_url,
            backend,
            timeout,
            mp.get_start_method(allow_none=True),
        ),
        nprocs=num_processes_per_machine,
        join=False,
    )
    _wait(context, machine_rank * num_processes_per_machine, world_size)


def _wait(context: mp.ProcessContext, first_rank: int, world_size: int) -> None:
    """Wait until all processes have ended; where one fails, end the others and say which it was."""
    try:
        while not context.join():
            pass
    except mp.ProcessRaisedException:
        # The others fail too when they wait for one that was killed: name that one. SIGTERM came from here, and one
        # that left word of its error may crash on the way out, when threads of its libraries lose what they use.
        words = {index: word for index, word in enumerate(context.error_files) if os.path.exists(word)}
        exit_codes = [process.exitcode for process in context.processes]
        killed = [
            index
            for index, code in enumerate(exit_codes)
            if code < 0 and code != -signal.SIGTERM and index not in words
        ]
        if killed:
            raise _killed(first_rank + killed[0], world_size, exit_codes[killed[0]]) from None
        # Not the first to be gone, which may have failed for want of another, but the first that had an error.
        first = min(words, key=lambda index: os.stat(words[index]).st_mtime_ns)
        with open(words[first], "rb") as file:
            traceback = pickle.load(file)
        if "InputError: " in traceback:
            raise InputError(traceback) from None
        lines = traceback.rpartition("Traceback (most recent call last):")[2].splitlines()
        reason = next(line for line in lines if line and not line[0].isspace())
        raise ProcessFailed(
            f"the process with rank {first_rank + first} of {world_size} failed: {reason}", traceback
        ) from None
    except mp.ProcessExitedException as error:
        raise _killed(first_rank + error.error_index, world_size, error.exit_code) from None
    except KeyboardInterrupt:
        # Ctrl-C in a terminal reaches every process; kill -INT only this one, and leaving would wait for the others.
        for process in context.processes:
            process.terminate()
            process.join()
        raise


def _killed(rank: int, world_size: int, exit_code: int) -> ProcessFailed:
    if exit_code > 0:
        how = f"ended with exit code {exit_code}"
    else:
        how = f"was killed by {signal.Signals(-exit_code).name}"
        how += ", as the system does when memory runs out" if exit_code == -signal.SIGKILL else ""
    return ProcessFailed(f"the process with rank {rank} of {world_size} {how}")


def _run_process(
    local_rank: int,
    main_func: Callable[..., Any],
    args: tuple,
    num_processes_per_machine: int,
    num_machines: int,
    machine_rank: int,
    dist_url: str,
    backend: str,
    timeout: timedelta,
    start_method: str | None,
) -> None:
    """One process. It lives in this package so that unpickling it imports the package, which patches fastreid."""
    # mp.spawn leaves "spawn" as the method for the workers of loaders too, each of which would then import everything.
    mp.set_start_method(start_method, force=True)
    if backend == "nccl":
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, _cores() // num_processes_per_machine))
    dist.init_process_group(
        backend,
        init_method=dist_url,
        world_size=num_machines * num_processes_per_machine,
        rank=machine_rank * num_processes_per_machine + local_rank,
        timeout=timeout,
    )
    for machine in range(num_machines):
        first = machine * num_processes_per_machine
        group = dist.new_group(list(range(first, first + num_processes_per_machine)), timeout=timeout)
        if machine == machine_rank:
            comm._LOCAL_PROCESS_GROUP = group
    # After an error the others cannot answer any more: leave, and let mp.spawn end them.
    main_func(*args)
    comm.synchronize()
    dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _cores() -> int:
    """Cores that this process may use, which is less than the machine has in a container or under taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
