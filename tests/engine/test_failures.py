"""A process that fails, is killed or hangs ends the run with one sentence: real runs, really killed."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import IO

import pytest
import torch.distributed as dist
from fastreid.utils import comm
from torch.distributed.elastic.multiprocessing.errors import record

from fastreid_ice import InputError
from fastreid_ice.commands.agent import ProcessFailed, run_processes
from fastreid_ice.processes import _WholeErrorFile, process_group, run_in_group
from processes import Process, start_command
from support import ROOT, SMALL

pytestmark = pytest.mark.slow


def work_with_a_lost_peer(how: str, store: dist.Store) -> None:
    """The second of two processes does not come to the exchange."""
    with process_group(store, "gloo", timeout=timedelta(seconds=5 if how == "hangs" else 600)):
        if comm.get_rank() == 1:
            lose(how)
        comm.all_gather("here")


class AbortsWhenDestroyed:
    """As a process group may abort if its peer is gone."""

    def __del__(self) -> None:
        os.abort()


kept: list[AbortsWhenDestroyed] = []


def lose(how: str) -> None:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "exited":
        os._exit(3)
    elif how == "refused, then crashed":
        kept.append(AbortsWhenDestroyed())  # until the interpreter ends
        raise InputError("CLUSTER.K1 is not to its taste")
    elif how == "failed, then crashed":
        atexit.register(os.abort)
        raise LookupError("the second process is lost\n(and says so at length)")
    time.sleep(600)


@pytest.mark.parametrize(
    ("how", "error", "sentence"),
    [
        ("killed", ProcessFailed, "^the process with rank 1 of 2 was killed by SIGKILL, as the system does when"),
        ("exited", ProcessFailed, "^the process with rank 1 of 2 ended with exit code 3$"),
        ("refused, then crashed", SystemExit, "^1$"),
        (
            "failed, then crashed",
            ProcessFailed,
            "^the process with rank 1 of 2 failed: LookupError: the second process is lost$",
        ),
        ("hangs", ProcessFailed, "^the process with rank 0 of 2 failed: .*[Tt]imed out"),
    ],
)
def test_a_lost_process_ends_the_run(how: str, error: type, sentence: str, monkeypatch, capfd) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    start = time.monotonic()
    with pytest.raises(error, match=sentence) as raised:
        run_processes([__file__, how], 2)
    assert time.monotonic() - start < 120
    told = capfd.readouterr().err
    assert "Traceback" not in told
    assert told.count("error: CLUSTER.K1 is not to its taste\n") == how.startswith("refused")
    if error is ProcessFailed:
        assert bool(raised.value.traceback) == (how not in ("killed", "exited"))


def test_the_file_of_an_error_is_complete_or_absent(tmp_path: Path, monkeypatch) -> None:
    """When one process is killed, the agent reads the files of the others, which fail at that moment."""
    file, whole, seen = tmp_path / "error.json", json.dump, []

    def slow(error: dict, opened: IO[str]) -> None:
        opened.write("{")
        opened.flush()
        seen.append(file.exists())
        opened.seek(0)
        whole(error, opened)

    def fail() -> None:
        raise LookupError("the other process is lost")

    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    monkeypatch.setattr(json, "dump", slow)
    with pytest.raises(LookupError):
        record(fail, _WholeErrorFile())()
    assert seen == [False] and list(tmp_path.iterdir()) == [file]
    assert json.loads(file.read_text())["message"]["message"] == "LookupError: the other process is lost"


def start_training(datasets_root: Path, output: Path, *options: str) -> Process:
    settings = {**SMALL, "SOLVER.MAX_EPOCH": 500, "OUTPUT_DIR": output, "DATASETS.TESTS": "()"}
    return start_command(
        *("train", "--num-gpus", 2, "--config-file", ROOT / "configs" / "ice_market.yml", *options),
        *(part for item in settings.items() for part in item),
        environment={"FASTREID_DATASETS": str(datasets_root)},
    )


def wait_for(condition, run: Process) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert run.poll() is None and time.monotonic() < deadline, "the run did not get that far"
        time.sleep(0.01)


def workers(run: Process) -> list[int]:
    """The process ids of a run's processes, by rank."""
    listing = subprocess.run(["ps", "-ww", "-o", "pid=,args=", "--ppid", str(run.pid)], capture_output=True, text=True)
    return sorted(int(line.split()[0]) for line in listing.stdout.splitlines() if "fastreid_ice.commands" in line)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_command_and_resume_goes_on(datasets_root: Path, tmp_path: Path, rank: int) -> None:
    """Killed while an epoch clusters its features, after the first checkpoint."""
    log = tmp_path / "run" / "log.txt"
    run = start_training(datasets_root, tmp_path / "run")
    try:
        wait_for((tmp_path / "run" / "last_checkpoint").is_file, run)
        epochs = log.read_text().count("features: 1 done")
        wait_for(lambda: log.read_text().count("features: 1 done") > epochs, run)
        os.kill(workers(run)[rank], signal.SIGKILL)
        _, errors = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 1
    assert errors.splitlines()[-1] == (
        f"error: the process with rank {rank} of 2 was killed by SIGKILL, as the system does when memory runs out; "
        "the same command with --resume continues from the last checkpoint"
    )
    assert "Traceback" not in errors
    assert (tmp_path / "run" / "report.html").is_file()
    if rank == 1:
        saved = len(list((tmp_path / "run").glob("model_*.pth")))
        resumed = start_training(datasets_root, tmp_path / "run", "--resume")
        try:
            wait_for(lambda: len(list((tmp_path / "run").glob("model_*.pth"))) > saved, resumed)
        finally:
            for pid in workers(resumed):
                os.kill(pid, signal.SIGKILL)
            resumed.communicate(timeout=60)
        assert "Starting training from epoch" in log.read_text()


def test_a_failed_process_ends_the_command(datasets_root: Path, tmp_path: Path) -> None:
    """The first process cannot write its config, since a folder has its name; the second waits for it."""
    (tmp_path / "run" / "config.yaml").mkdir(parents=True)
    run = start_training(datasets_root, tmp_path / "run")
    try:
        _, errors = run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode == 1
    assert "Traceback" in errors
    last = errors.splitlines()[-1]
    assert last.startswith("error: the process with rank 0 of 2 failed: IsADirectoryError: ")
    assert last.endswith("; nothing was saved to continue from; start it again")


if __name__ == "__main__":
    run_in_group(partial(work_with_a_lost_peer, sys.argv[1]))
