"""Failures around a run: it ends with one sentence, keeps its files, and can be resumed."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fastreid.config import CfgNode
from fastreid.engine import default_argument_parser
from fastreid.engine.train_loop import HookBase
from torch import Tensor

from fastreid_ice import InputError
from fastreid_ice.commands.train import run_process, setup
from fastreid_ice.data import build_training_set
from fastreid_ice.engine import UnsupervisedTrainer
from fastreid_ice.engine.hooks import HOOK_REGISTRY
from fastreid_ice.files import PART, owned_folder
from fastreid_ice.losses import LOSS_REGISTRY
from processes import Process, start_command
from support import ROOT, SMALL, train


def start(datasets_root: Path, output: Path, *arguments: str, **settings: object) -> Process:
    options = SMALL | {"OUTPUT_DIR": output, "DATASETS.TESTS": "()"} | settings
    return start_command(
        *("train", *arguments, "--config-file", ROOT / "configs" / "ice_market.yml"),
        *(part for item in options.items() for part in item),
        environment={"FASTREID_DATASETS": str(datasets_root)},
    )


def wait_for(path: Path, run: Process) -> None:
    deadline = time.monotonic() + 600
    while not path.is_file():
        assert run.poll() is None and time.monotonic() < deadline, run.communicate()
        time.sleep(0.01)


@pytest.fixture
def runs() -> Iterator[list[Process]]:
    """Processes that a test has started; they end with it."""
    started: list[Process] = []
    yield started
    for run in started:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.communicate()


@pytest.mark.slow
def test_interrupt_refuse_a_second_run_and_resume(datasets_root: Path, tmp_path: Path, runs: list[Process]) -> None:
    """With loader workers; Ctrl-C reaches all processes."""
    output = tmp_path / "run"
    settings = {"SOLVER.MAX_EPOCH": 6, "DATALOADER.NUM_WORKERS": 2}
    run = start(datasets_root, output, **settings)
    runs.append(run)
    wait_for(output / "last_checkpoint", run)
    os.killpg(run.pid, signal.SIGSTOP)
    log = (output / "log.txt").read_text()
    second = start(datasets_root, output, **settings)
    runs.append(second)
    _, refusal = second.communicate(timeout=300)
    assert second.returncode == 1
    assert refusal.splitlines()[-1].endswith(
        "another run is writing there; wait for its end, or choose another OUTPUT_DIR"
    )
    assert (output / "log.txt").read_text() == log, "it has written nothing"
    os.killpg(run.pid, signal.SIGCONT)
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 130
    assert errors.splitlines()[-1] == "interrupted; the same command with --resume continues from the last checkpoint"
    assert "Traceback" not in errors
    assert not list(output.glob(f"*{PART}")) and not (output / "model_final.pth").exists()
    assert (output / "report.html").is_file()

    weights = []
    for folder, flags in ((output, ["--resume"]), (tmp_path / "whole", [])):
        whole = start(datasets_root, folder, *flags, **settings)
        runs.append(whole)
        assert whole.wait(timeout=600) == 0
        weights.append(torch.load(folder / "model_final.pth", weights_only=True)["model"])
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.slow
def test_an_interrupt_of_the_first_of_several_processes(
    datasets_root: Path, tmp_path: Path, runs: list[Process]
) -> None:
    """kill -INT of only the command: the processes that it started end too."""
    run = start(datasets_root, tmp_path / "run", "--num-gpus", "2", **{"SOLVER.MAX_EPOCH": 500})
    runs.append(run)
    wait_for(tmp_path / "run" / "last_checkpoint", run)
    os.kill(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 130 and errors.splitlines()[-1].startswith("interrupted; the same command with --resume")
    with owned_folder(str(tmp_path / "run")):
        pass  # the lock is free again
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_several_processes_that_stop_leave_a_report(datasets_root: Path, tmp_path: Path, runs: list[Process]) -> None:
    """All raise the error at once; when the first ends, the others are terminated, maybe while writing the report."""
    run = start(
        *(datasets_root, tmp_path / "run", "--num-gpus", "2"),
        **{"SOLVER.MAX_EPOCH": 500, "CLUSTER.EPS": 1e-6, "CLUSTER.PATIENCE": 2},
    )
    runs.append(run)
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 1
    assert errors.splitlines()[-1].startswith("error: 2 epochs in a row found fewer than two clusters"), errors
    assert "<dt>epochs</dt><dd>1</dd>" in (tmp_path / "run" / "report.html").read_text()


def test_a_folder_is_free_when_its_process_is_dead(tmp_path: Path) -> None:
    """Even if a fork of it is still alive, as loader workers are for seconds."""
    folder = str(tmp_path / "run")
    ready, tell = os.pipe()
    holder = os.fork()
    if holder == 0:
        with owned_folder(folder):
            worker = os.fork()
            if worker:
                os.write(tell, str(worker).encode())
            time.sleep(600)
            os._exit(0)
    os.close(tell)
    worker = int(os.read(ready, 10))
    os.close(ready)
    try:
        sentence = r"OUTPUT_DIR '.*run': another run is writing there; wait for its end, or choose another"
        with pytest.raises(InputError, match=sentence), owned_folder(folder):
            pass
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        os.kill(worker, 0)  # still alive
        with owned_folder(folder):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    sentence = r"OUTPUT_DIR '.*run' cannot be written to: it is a file; choose another OUTPUT_DIR"
    with pytest.raises(InputError, match=sentence), owned_folder(str(tmp_path / "run")):
        pass
    settings = [str(part) for item in (SMALL | {"OUTPUT_DIR": str(tmp_path / "run")}).items() for part in item]
    for flags in ([], ["--eval-only"]):
        arguments = ["--config-file", str(ROOT / "configs" / "ice_market.yml"), *flags, *settings]
        args = default_argument_parser().parse_args(arguments)
        with pytest.raises(InputError, match=sentence):
            run_process(args, setup(args))


def test_the_command_refuses_a_folder_that_nobody_can_write(datasets_root: Path, monkeypatch) -> None:
    """A folder that not even root can write to, before anything else is done."""
    if not Path("/proc/self").is_dir():
        pytest.skip("/proc is the one folder that root cannot write to on any machine, and there is none here")
    monkeypatch.setenv("FASTREID_DATASETS", str(datasets_root))
    settings = [str(part) for item in (SMALL | {"OUTPUT_DIR": "/proc/run"}).items() for part in item]
    config = ["--config-file", str(ROOT / "configs" / "ice_market.yml")]
    arguments = default_argument_parser().parse_args([*config, *settings])
    with pytest.raises(InputError, match="OUTPUT_DIR '/proc/run' cannot be written to: .*; choose another OUTPUT_DIR"):
        run_process(arguments, setup(arguments))


def test_a_folder_without_permission(tmp_path: Path) -> None:
    """As another user if the tests run as root, who may write anywhere."""
    folder = tmp_path / "run"
    folder.mkdir(mode=0o555)
    uid = os.geteuid()
    modes = {parent: parent.stat().st_mode for parent in tmp_path.parents if parent.stat().st_uid == uid}
    try:
        if uid == 0:
            for parent in (tmp_path, *modes):
                os.chmod(parent, parent.stat().st_mode | 0o011)
            os.seteuid(65534)
        with pytest.raises(InputError, match="cannot be written to: Permission denied"), owned_folder(str(folder)):
            pass
    finally:
        os.seteuid(uid)
        for parent, mode in modes.items():
            os.chmod(parent, mode)


class TestLossThatIsNotFinite:
    @pytest.fixture
    def broken_at(self, cfg: CfgNode, monkeypatch: pytest.MonkeyPatch):
        """Makes one of the losses NaN or infinite from a step on."""
        cls = LOSS_REGISTRY.get("HardInstanceLoss")
        forward = cls.forward
        steps = []

        def arrange(step: int, value: float) -> None:
            def broken(self, batch) -> Tensor:
                steps.append(batch)
                loss = forward(self, batch)
                return loss * value if len(steps) > step else loss

            monkeypatch.setattr(cls, "forward", broken)

        return arrange

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_ends_the_run_at_that_step(self, cfg: CfgNode, broken_at, value: float, caplog) -> None:
        """In the last epoch, which is not evaluated either."""
        broken_at(3, value)
        cfg.TEST.EVAL_PERIOD = 0
        trainers = []
        sentence = rf"loss_hard_instance is {value} at iteration 3 \(epoch 2\): .* is kept: .*/run/model_0000.pth"
        with pytest.raises(InputError, match=sentence):
            train_and_keep(cfg, trainers)
        (trainer,) = trainers
        assert trainer.iter == 3 and "Traceback" not in caplog.text
        assert all(value.isfinite().all() for value in trainer.model.state_dict().values())
        assert trainer.checkpointer.get_checkpoint_file().endswith("model_0000.pth")
        assert not hasattr(trainer, "_last_eval_results")

    def test_before_any_checkpoint(self, cfg: CfgNode, broken_at) -> None:
        broken_at(0, math.nan)
        with pytest.raises(InputError, match="loss_hard_instance is nan at iteration 0 .*there is no checkpoint yet"):
            train(cfg)
        assert not list(Path(cfg.OUTPUT_DIR).glob("*.pth"))


def train_and_keep(cfg: CfgNode, trainers: list[UnsupervisedTrainer]) -> None:
    Path(cfg.OUTPUT_DIR).mkdir()
    torch.manual_seed(cfg.SEED)
    trainers.append(UnsupervisedTrainer(cfg))
    trainers[0].resume_or_load(resume=False)
    trainers[0].train()


class RemoveImages(HookBase):
    """Removes images when an epoch has its labels, and records the labels of the next epoch."""

    def __init__(self, cfg: CfgNode) -> None:
        self.paths = build_training_set(cfg).paths[::5]

    def before_step(self) -> None:
        for path in self.paths:
            Path(path).unlink(missing_ok=True)


@pytest.mark.parametrize("unreadable", ["error", "skip"])
def test_images_removed_while_training(cfg: CfgNode, tmp_path: Path, monkeypatch, caplog, unreadable: str) -> None:
    """In folders and files with names of every kind."""
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path / "data sets, ä"))
    monkeypatch.setitem(HOOK_REGISTRY._obj_map, "RemoveImages", RemoveImages)
    cfg.merge_from_list(
        ["DATALOADER.UNREADABLE", unreadable, "DATASETS.TESTS", (), "HOOKS", (*cfg.HOOKS, "RemoveImages")]
    )
    cfg.OUTPUT_DIR = str(tmp_path / "a run, 人")
    if unreadable == "error":
        with pytest.raises(InputError, match=r"cannot read the image .*data sets, ä.*No such file .*UNREADABLE skip"):
            train(cfg)
        return
    labels = train(cfg)._hooks[0].labels
    assert (labels[::5] == -1).all() and "11 of 54 training images cannot be read" in caplog.text
    assert Path(cfg.OUTPUT_DIR, "model_final.pth").is_file()
