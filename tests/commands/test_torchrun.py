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
from support import FASTREID_ICE, ROOT, SMALL

pytestmark = pytest.mark.slow

TRAIN_NET = [sys.executable, str(ROOT / "tools" / "train_net.py")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]
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
    """Starts commands, each in its own folder; those still running at the end of a test are ended."""
    started: list[subprocess.Popen] = []

    def run(folder: str, command: list[str], **variables: str) -> subprocess.Popen:
        (tmp_path / folder).mkdir(exist_ok=True)
        variables |= {"FASTREID_DATASETS": str(datasets_root), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
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


class TestTwoMachines:
    @pytest.fixture
    def pair(self, start):
        """Starts the same command on two machines, and returns the output of each."""

        def run(train: list[str]) -> list[tuple[int, str, str]]:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = str(probe.getsockname()[1])
            meeting = ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", port]
            machines = [
                start(f"machine{rank}", [*TORCHRUN, "1", *meeting, "--node-rank", str(rank), *train]) for rank in (0, 1)
            ]
            printed = [machine.communicate(timeout=300) for machine in machines]
            return [(machine.returncode, *out) for machine, out in zip(machines, printed, strict=True)]

        return run

    def test_without_a_common_disk(self, pair, tmp_path: Path) -> None:
        """Two stages, of which the second starts from a file of the first machine; then one more epoch of each."""
        first, second = tmp_path / "machine0", tmp_path / "machine1"
        train = [str(ROOT / "tools" / "train_net.py")]
        settings = {"config": "dcmip_market.yml", "MODEL__START_FROM": "last", "MODEL__WEIGHTS": "weights.pth"}
        for code, _, errors in pair([*train, *arguments(**settings)]):
            assert code == 1
            assert errors.count("error: MODEL.WEIGHTS: no file 'weights.pth'\n") == 1
        settings["MODEL__WEIGHTS"] = ""
        for flags, epochs in ((), 1), (("--resume",), 2):
            settings["SOLVER__MAX_EPOCH"] = epochs
            for code, printed, errors in pair([*train, *arguments(*flags, **settings)]):
                assert code == 0, printed + errors
            assert_equal(weights(second, 1), weights(first, 0))
            assert (first / "run" / "stage2" / "model_final.pth").is_file()
        assert "Starting training from epoch 2" in (first / "run" / "log.txt").read_text()
        assert not list(second.glob("run/**/*.pth")) and list(second.glob("run/log.txt*"))

    def test_a_folder_that_one_of_them_cannot_have(self, pair, tmp_path: Path) -> None:
        with owned_folder(str(tmp_path / "machine0" / "run")):
            ended = pair([str(ROOT / "tools" / "train_net.py"), *arguments()])
        for code, _, errors in ended:
            assert code == 1
            assert (
                errors.count("error: OUTPUT_DIR 'run': another run is writing there; wait for its end, or choose") == 1
            )
        assert not list(tmp_path.glob("machine*/run/log.txt*"))


def test_a_lost_process_is_started_again(start, tmp_path: Path) -> None:
    """By our command and killed in its second epoch, and by torchrun without a kill: both end with the same weights."""
    settings = {"SOLVER__MAX_EPOCH": 3}
    whole = start("whole", [*TORCHRUN, "2", *TRAIN_NET[1:], *arguments(**settings)])
    printed, errors = whole.communicate(timeout=300)
    assert whole.returncode == 0, printed + errors
    lost = [*FASTREID_ICE, "train", *arguments("--num-gpus", "2", "--max-restarts", "1", **settings)]
    killed = start("killed", lost, KILL_IN_EPOCH="1")
    printed, errors = killed.communicate(timeout=300)
    assert killed.returncode == 0, printed + errors
    log = (tmp_path / "killed" / "run" / "log.txt").read_text()
    assert "Restart 1 after a process was lost; the run continues from the last checkpoint" in log
    assert "Starting training from epoch 2" in log
    for folder in ("whole", "killed"):
        assert_equal(weights(tmp_path / folder, 0), weights(tmp_path / "whole", 1))
    last = [torch.load(tmp_path / name / "run" / "model_final.pth", weights_only=True) for name in ("whole", "killed")]
    assert_equal(last[0]["model"], last[1]["model"])


def test_a_restart_does_not_go_on_from_another_run(start, tmp_path: Path) -> None:
    """A run that loses a process before its first checkpoint, in an earlier run's folder, restarts from epoch 1."""
    earlier = start("run", [*TRAIN_NET, *arguments(SOLVER__MAX_EPOCH=2)])
    assert earlier.wait(timeout=300) == 0
    settings = arguments("--num-gpus", "2", "--max-restarts", "1", SOLVER__MAX_EPOCH=1)
    restarted = start("run", [*FASTREID_ICE, "train", *settings], KILL_IN_EPOCH="0")
    printed, errors = restarted.communicate(timeout=300)
    assert restarted.returncode == 0, printed + errors
    log = (tmp_path / "run" / "run" / "log.txt").read_text()
    assert "Restart 1 after a process was lost; the run continues from the start, since there is no checkpoint" in log
