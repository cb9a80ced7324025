"""torchrun as users run it: two machines without a common disk, and a process that is lost and restarted."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastreid_ice.files import owned_folder
from processes import start_command
from support import ROOT, SMALL

pytestmark = pytest.mark.slow

TRAIN_NET = [sys.executable, str(ROOT / "tools" / "train_net.py")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]
RESTARTED = ["--num-gpus", "2", "--max-restarts", "1"]
TINY = {
    **SMALL,
    "IMPORTS": (str(Path(__file__).with_name("tiny.py")),),
    "MODEL.BACKBONE.NAME": "build_tiny_backbone",
    "MODEL.BACKBONE.FEAT_DIM": 16,
    "DATASETS.TESTS": (),
    "HOOKS": ("Witness",),
    "OUTPUT_DIR": "run",
}


def arguments(*flags: str, config: str = "ice_market.yml", **settings: object) -> list[str]:
    """Those of a run that writes to the folder ``run`` in the current one; further keys as KEY__KEY=value."""
    options = TINY | {key.replace("__", "."): value for key, value in settings.items()}
    config = str(ROOT / "configs" / config)
    return [*flags, "--config-file", config, *(str(part) for item in options.items() for part in item)]


@pytest.fixture
def start(datasets_root: Path, tmp_path: Path) -> Iterator:
    """Starts torchrun, each time in its own folder; those still running at the end of a test are ended."""
    started: list[subprocess.Popen] = []

    def run(folder: str, command: list[str]) -> subprocess.Popen:
        (tmp_path / folder).mkdir(exist_ok=True)
        variables = {"FASTREID_DATASETS": str(datasets_root), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        started.append(
            subprocess.Popen(
                command,
                cwd=tmp_path / folder,
                env=os.environ | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.send_signal(signal.SIGTERM)
        process.communicate()


def weights(folder: Path, rank: int) -> dict[str, torch.Tensor]:
    """The last weights that ``Witness`` has seen in one process."""
    return torch.load(folder / f"rank{rank}.pt", weights_only=True)


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys() and found
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


class TestTwoMachines:
    """One process on each."""

    @pytest.fixture
    def torchrun(self, start):
        """Runs one command on both by torchrun, and returns the exit code and output of each."""

        def run(train: list[str]) -> list[tuple[int, str, str]]:
            meeting = ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", free_port()]
            command = [*TORCHRUN, "1", *meeting, "--node-rank"]
            machines = [start(f"machine{rank}", [*command, str(rank), *TRAIN_NET[1:], *train]) for rank in (0, 1)]
            printed = [machine.communicate(timeout=300) for machine in machines]
            return [(machine.returncode, *out) for machine, out in zip(machines, printed, strict=True)]

        return run

    @pytest.fixture
    def by_variables(self, datasets_root: Path, tmp_path: Path):
        """The same by the environment variables that torchrun sets, without its processes."""

        def run(train: list[str]) -> list[tuple[int, str, str]]:
            group = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
            group |= {"MASTER_PORT": free_port(), "FASTREID_DATASETS": str(datasets_root), "OMP_NUM_THREADS": "1"}
            machines = []
            for rank in ("0", "1"):
                folder = tmp_path / f"machine{rank}"
                folder.mkdir(exist_ok=True)
                variables = group | {"RANK": rank, "GROUP_RANK": rank}
                machines.append(start_command("train", *train, folder=folder, environment=variables))
            try:
                printed = [machine.communicate(timeout=300) for machine in machines]
            finally:
                for machine in machines:
                    machine.kill()
            return [(machine.returncode, *out) for machine, out in zip(machines, printed, strict=True)]

        return run

    def test_without_a_common_disk(self, torchrun, by_variables, tmp_path: Path) -> None:
        """Two stages, of which the second starts from a file of the first machine; then one more epoch of each."""
        first, second = tmp_path / "machine0", tmp_path / "machine1"
        settings = {"config": "dcmip_market.yml", "MODEL__START_FROM": "last"}
        for run, flags, epochs in (torchrun, (), 1), (by_variables, ("--resume",), 2):
            for code, printed, errors in run(arguments(*flags, **settings, SOLVER__MAX_EPOCH=epochs)):
                assert code == 0, printed + errors
            assert_equal(weights(second, 1), weights(first, 0))
            assert (first / "run" / "stage2" / "model_final.pth").is_file()
        assert "Starting training from epoch 2" in (first / "run" / "log.txt").read_text()
        assert not list(second.glob("run/**/*.pth")) and list(second.glob("run/log.txt*"))

    def test_weights_that_the_first_does_not_have(self, by_variables) -> None:
        for code, _, errors in by_variables(arguments(MODEL__WEIGHTS="weights.pth")):
            assert code == 1
            assert errors == "error: MODEL.WEIGHTS: no file 'weights.pth'\n"

    def test_a_folder_that_the_first_cannot_have(self, by_variables, tmp_path: Path) -> None:
        with owned_folder(str(tmp_path / "machine0" / "run")):
            ended = by_variables(arguments())
        for code, _, errors in ended:
            assert code == 1
            assert (
                errors.count("error: OUTPUT_DIR 'run': another run is writing there; wait for its end, or choose") == 1
            )
        assert not list(tmp_path.glob("machine*/run/log.txt*"))


@pytest.fixture
def command(datasets_root: Path, tmp_path: Path):
    """Runs our command in a folder of its own, to its end; the second process kills itself in an epoch if told so."""

    def run(folder: str, *flags: str, kill_in_epoch: str = "", **settings: object) -> None:
        (tmp_path / folder).mkdir(exist_ok=True)
        variables = {"FASTREID_DATASETS": str(datasets_root), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        variables["KILL_IN_EPOCH"] = kill_in_epoch
        train = ["train", *arguments(*flags, **settings)]
        process = start_command(*train, folder=tmp_path / folder, environment=variables)
        try:
            printed, errors = process.communicate(timeout=300)
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGTERM)  # its agent ends the other processes
        assert process.returncode == 0, printed + errors

    return run


def test_a_lost_process_is_started_again(start, command, tmp_path: Path) -> None:
    """By our command and killed in its second epoch, and by torchrun without a kill: both end with the same weights."""
    settings = {"SOLVER__MAX_EPOCH": 3}
    whole = start("whole", [*TORCHRUN, "2", *TRAIN_NET[1:], *arguments(**settings)])
    printed, errors = whole.communicate(timeout=300)
    assert whole.returncode == 0, printed + errors
    command("killed", *RESTARTED, kill_in_epoch="1", **settings)
    log = (tmp_path / "killed" / "run" / "log.txt").read_text()
    assert "Restart 1 after a process was lost; the run continues from the last checkpoint" in log
    assert "Starting training from epoch 2" in log
    for folder in ("whole", "killed"):
        assert_equal(weights(tmp_path / folder, 0), weights(tmp_path / "whole", 1))
    last = [torch.load(tmp_path / name / "run" / "model_final.pth", weights_only=True) for name in ("whole", "killed")]
    assert_equal(last[0]["model"], last[1]["model"])


def test_a_restart_does_not_go_on_from_another_run(command, tmp_path: Path) -> None:
    """A run that loses a process before its first checkpoint, in an earlier run's folder, restarts from epoch 1."""
    command("run", SOLVER__MAX_EPOCH=2)
    command("run", *RESTARTED, kill_in_epoch="0", SOLVER__MAX_EPOCH=1)
    log = (tmp_path / "run" / "run" / "log.txt").read_text()
    assert "Restart 1 after a process was lost; the run continues from the start, since there is no checkpoint" in log
