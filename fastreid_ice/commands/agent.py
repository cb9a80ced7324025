"""torchrun's agent in our own command: it starts the processes of this machine, watches them and restarts them."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence
from urllib.parse import urlsplit

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ..errors import InputError

TOLD = (1, 128 + signal.SIGINT)  # exit codes of a process that has reported the reason itself
TERMINATED = (-signal.SIGTERM, 128 + signal.SIGTERM)
GRACE = 20  # seconds; the agent kills a process that has not ended 30 s after it was told to


class ProcessFailed(RuntimeError):
    """A process of a run failed or was killed. The message says in one sentence which one, and how.

    ``traceback`` is that of the error in the process, as text; empty if the process was killed.
    """

    def __init__(self, sentence: str, traceback: str = "") -> None:
        super().__init__(sentence)
        self.traceback = traceback


def run_processes(
    command: Sequence[str],
    number: int,
    *,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    max_restarts: int = 0,
) -> None:
    """Runs Python in several processes, each of which calls ``run_in_group``; call it on every machine.

    When one of the processes fails or is killed, the others are ended, and all are started again up to ``max_restarts``
    times.

    Args:
        command: what follows ``python``.
        number: number of processes on each machine.
        num_machines: how many machines call this.
        machine_rank: the number of this machine, from 0.
        dist_url: where the machines meet, a free port of machine 0, as ``tcp://10.0.0.1:23456``; "auto" for one alone.
        max_restarts: see above.

    Raises:
        InputError: inconsistent numbers, or machines that do not meet.
        KeyboardInterrupt: SIGINT; the processes were interrupted too, and have ended.
        ProcessFailed: a process raised an error, or ended with a signal or an exit code.
        SystemExit: a process has already reported to the user why the run ends.
    """
    if number < 1 or max_restarts < 0 or not 0 <= machine_rank < num_machines:
        raise InputError(
            f"--num-gpus {number} --num-machines {num_machines} --machine-rank {machine_rank} --max-restarts "
            f"{max_restarts}: at least one process, ranks from 0 to machines - 1, and restarts from 0"
        )
    meeting = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "127.0.0.1"}
    if num_machines > 1:
        url = urlsplit(dist_url)
        if not (url.hostname and url.port):
            raise InputError(
                f"--num-machines {num_machines} needs a --dist-url that all machines reach, a free port of the first "
                "one such as tcp://10.0.0.1:23456"
            )
        # By machine rank, so that the first process, whose machine has the checkpoints, remains first after a restart.
        meeting = {"rdzv_backend": "static", "rdzv_endpoint": url.netloc, "rdzv_configs": {"rank": machine_rank}}
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic."):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # errors are reported below
    with tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=num_machines,
            max_nodes=num_machines,
            nproc_per_node=number,
            run_id=uuid.uuid4().hex if num_machines == 1 else "fastreid-ice",
            max_restarts=max_restarts,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            **meeting,
        )
        try:
            elastic_launch(config, sys.executable)("-u", *command)
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from error
            sys.exit(128 + error.sigval)
        except (DistError, RendezvousError) as error:
            raise InputError(f"--dist-url {dist_url}: the machines did not meet: {error}") from error
        except ChildFailedError as error:
            raise _cause(error.failures, num_machines * number) from None


def _cause(failures: dict[int, ProcessFailure], world_size: int) -> BaseException:
    """The failure that caused the others: processes that wait for one that has ended fail as well."""
    told = [failure.exitcode for failure in failures.values() if not _recorded(failure) and failure.exitcode in TOLD]
    if told:
        return SystemExit(told[0])
    first = min(failure.timestamp for failure in failures.values())
    rank, failure = min(failures.items(), key=lambda item: _order(item[1], first))
    process = f"the process with rank {rank} of {world_size}"
    if _recorded(failure):
        reason = failure.message["message"].partition("\n")[0]
        return ProcessFailed(f"{process} failed: {reason}", failure.message["extraInfo"]["py_callstack"])
    if failure.exitcode > 0:
        return ProcessFailed(f"{process} ended with exit code {failure.exitcode}")
    why = ", as the system does when memory runs out" if failure.exitcode == -signal.SIGKILL else ""
    return ProcessFailed(f"{process} was killed by {failure.signal_name()}{why}")


def _order(failure: ProcessFailure, first: int) -> tuple[int, int]:
    if _recorded(failure):
        return 1, os.stat(failure.error_file).st_mtime_ns
    ended_by_agent = failure.exitcode in TERMINATED or failure.timestamp > first + GRACE
    return 2 if ended_by_agent else 0, failure.timestamp


def _recorded(failure: ProcessFailure) -> bool:
    return isinstance(failure.message, dict)
