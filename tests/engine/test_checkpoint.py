"""Files of a run are complete, whatever happens while they are written."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from fastreid.config import CfgNode
from fastreid.engine.train_loop import HookBase
from fastreid.solver.lr_scheduler import WarmupLR
from fastreid.utils.checkpoint import Checkpointer as FastReidCheckpointer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from fastreid_ice import InputError
from fastreid_ice.compat import training
from fastreid_ice.engine import Checkpointer, UnsupervisedTrainer
from fastreid_ice.engine.checkpoint import read_checkpoint
from fastreid_ice.engine.hooks import HOOK_REGISTRY
from fastreid_ice.engine.writers import rewind
from fastreid_ice.files import PART
from support import train


class Stopped(Exception):
    pass


class FillDisk(HookBase):
    """From the second epoch on there is space for lines, but not for weights."""

    def __init__(self, cfg: CfgNode) -> None:
        pass

    def before_epoch(self) -> None:
        if self.trainer.epoch == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


class RunsCode:
    """A pickle that runs code when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def model_of(value: float) -> nn.Module:
    model = nn.Linear(300, 300)
    nn.init.constant_(model.weight, value)
    return model


def saved_value(folder: Path) -> float:
    path = Checkpointer(nn.Identity(), str(folder)).get_checkpoint_file()
    return read_checkpoint(path)["model"]["weight"].unique().item()


def in_a_child(work: Callable[[], None]) -> int:
    """Runs ``work`` in a forked process, which then ends by ``os._exit``; the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # the other threads were not forked, so waiting for them would never end
        try:
            work()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def save_and_die(folder: Path, step: int) -> None:
    """Saves 2.0, and is killed at the given step of it."""
    steps = iter(range(1, 1000))

    def at_each_line(frame, event, argument):
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return at_each_line

    def trace(frame, event, argument):
        ours = frame.f_code.co_filename.endswith(("fastreid_ice/files.py", "engine/checkpoint.py"))
        return at_each_line if ours else None

    checkpointer = Checkpointer(model_of(2.0), str(folder))
    sys.settrace(trace)
    checkpointer.save("model_0001", epoch=1)


def test_a_kill_at_each_step_of_saving_leaves_a_good_checkpoint(tmp_path: Path) -> None:
    """SIGKILL before each line of our code that runs while the second of two checkpoints is saved."""
    found = []
    for step in range(1, 200):
        folder = tmp_path / str(step)
        folder.mkdir()
        Checkpointer(model_of(1.0), str(folder)).save("model_0000", epoch=0)
        signalled = in_a_child(lambda folder=folder, step=step: save_and_die(folder, step))
        found.append(saved_value(folder))
        assert all(read_checkpoint(str(path)) for path in folder.glob("*.pth")), (
            "a file with its final name is complete"
        )
        Checkpointer(model_of(0.0), str(folder)).tidy(resumed=True)
        assert not list(folder.glob(f"*{PART}"))
        if not signalled:
            break
    assert step > 20 and found[0] == 1.0 and found[-1] == 2.0
    assert found == sorted(found), "from some step on it is the new one"


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes; this fails like a full disk, with an OSError in the middle."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("room", [0, 100, 100_000, 360_000])
@pytest.mark.parametrize("folder", ["run", "mit Leerzeichen é"])
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, room: int, folder: str) -> None:
    """The file is 361 kB long; its incomplete part is removed again."""
    output = tmp_path / folder
    output.mkdir()
    Checkpointer(model_of(1.0), str(output)).save("model_0000")
    files = sorted(output.iterdir())
    with (
        room_for(room),
        pytest.raises(InputError, match=r"cannot write .*model_0001.pth: .*--resume continues") as error,
    ):
        Checkpointer(model_of(2.0), str(output)).save("model_0001")
    assert isinstance(error.value.__cause__, OSError) and error.value.__cause__.errno == errno.EFBIG
    assert "\n" not in str(error.value)
    assert sorted(output.iterdir()) == files and saved_value(output) == 1.0


def test_an_interrupt_while_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would report it as a broken file."""

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    Checkpointer(model_of(1.0), str(tmp_path)).save("model_0000")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Checkpointer(model_of(2.0), str(tmp_path)).save("model_0001")
    assert saved_value(tmp_path) == 1.0 and not list(tmp_path.glob(f"*{PART}"))


def test_the_best_weights_are_no_place_to_go_on_from(tmp_path: Path) -> None:
    """They are saved first. After a kill at that point the epoch is trained again, and saves its own checkpoint."""
    checkpointer = Checkpointer(model_of(1.0), str(tmp_path))
    checkpointer.save("model_best", epoch=0)
    assert not checkpointer.has_checkpoint()
    checkpointer.save("model_final", epoch=0)
    assert Path(checkpointer.get_checkpoint_file()).name == "model_final.pth"


def test_files_of_the_user_stay(cfg: CfgNode) -> None:
    """With any name, for instance an unfinished download."""
    own = (
        Path(cfg.OUTPUT_DIR, "film.part"),
        Path(cfg.OUTPUT_DIR, "labels.csv.part"),
        Path(cfg.OUTPUT_DIR, "x.part", "y"),
    )
    for path in own:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    Path(cfg.OUTPUT_DIR, f"folder{PART}").mkdir()
    cfg.SOLVER.MAX_EPOCH = 1
    train(cfg)
    assert [path.read_text() for path in own] == ["mine"] * 3


def test_broken_weights_are_not_saved(tmp_path: Path) -> None:
    Checkpointer(model_of(1.0), str(tmp_path)).save("model_0000")
    with pytest.raises(InputError, match=r"weight \(and 0 more\) is no longer finite.* is kept: .*model_0000.pth"):
        Checkpointer(model_of(float("nan")), str(tmp_path)).save("model_0001")
    assert [path.name for path in tmp_path.glob("*.pth")] == ["model_0000.pth"] and saved_value(tmp_path) == 1.0


def test_a_disk_that_fills_up_ends_the_run_with_a_sentence(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """When there is space again, the run continues from its last checkpoint."""
    monkeypatch.setitem(HOOK_REGISTRY._obj_map, "FillDisk", FillDisk)
    hooks = cfg.HOOKS
    cfg.HOOKS = ("FillDisk", *hooks)
    sentence = "cannot write .*/run/model_.*pth: File too large; .*--resume continues"
    with room_for(resource.getrlimit(resource.RLIMIT_FSIZE)[0]), pytest.raises(InputError, match=sentence):
        train(cfg)
    cfg.HOOKS = hooks
    assert (Path(cfg.OUTPUT_DIR) / "last_checkpoint").read_text() == "model_0000.pth"
    train(cfg, resume=True)
    assert (Path(cfg.OUTPUT_DIR) / "model_final.pth").is_file()


class TestLoading:
    """Never runs code in a file, for every key that names a file of weights."""

    @pytest.fixture
    def trap(self, tmp_path: Path) -> Path:
        path = tmp_path / "trap.pth"
        torch.save({"model": model_of(1.0).state_dict(), "epoch": 0, "optimizer": RunsCode(tmp_path / "ran")}, path)
        torch.load(path, weights_only=False)
        (tmp_path / "ran").unlink()  # so the file does run code
        return path

    @pytest.mark.parametrize("key", ["MODEL.WEIGHTS", "MODEL.BACKBONE.PRETRAIN_PATH", "last_checkpoint"])
    def test_runs_no_code(self, cfg: CfgNode, trap: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # the default of torch < 2.6
        if key == "last_checkpoint":
            Path(cfg.OUTPUT_DIR).mkdir()
            shutil.copy(trap, cfg.OUTPUT_DIR)
            Path(cfg.OUTPUT_DIR, key).write_text(trap.name)
        else:
            cfg.merge_from_list([key, str(trap), "MODEL.BACKBONE.PRETRAIN", key != "MODEL.WEIGHTS"])
        with pytest.raises(InputError, match="(cannot load weights from|PRETRAIN_PATH) .*trap.pth"):
            train(cfg, resume=key == "last_checkpoint")
        assert not Path(trap.parent, "ran").exists()

    def test_reads_what_fast_reid_saves(self, tmp_path: Path) -> None:
        """Optimiser and schedules of every kind, in addition to the weights."""
        model = model_of(3.0)
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.ones(1, 300)).sum().backward()
        optimizer.step()
        schedules = {
            "warmup": WarmupLR(optimizer, 0.1, 10, "linear"),
            "steps": torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5]),
            "cosine": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10),
        }
        theirs = FastReidCheckpointer(model, str(tmp_path), optimizer=optimizer, **schedules)
        theirs.save("model_best", epoch=4, metric=0.5)
        found = read_checkpoint(str(tmp_path / "model_best.pth"))
        torch.testing.assert_close(found["model"], model.state_dict())
        assert found["epoch"] == 4 and {"optimizer", *schedules} < set(found)


def test_the_gradient_scale_of_float16_goes_on(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "mixed_precision", lambda device: torch.float16)
    cfg.SOLVER.AMP.ENABLED = True
    Path(cfg.OUTPUT_DIR).mkdir()
    for resume, scale in ((False, 2.0**16), (True, 8.0)):
        trainer = UnsupervisedTrainer(cfg)
        trainer.resume_or_load(resume=resume)
        scaler = trainer._trainer.grad_scaler
        scaler.scale(torch.ones(()))
        assert scaler.get_scale() == scale
        scaler.update(8.0)
        trainer.checkpointer.save("model_0000", epoch=0)


class TestScalars:
    def test_rewind(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.json"
        rewind(str(path), 3)
        assert not path.exists()
        whole = '{"iteration": 0, "mAP": 1}\n{"iteration": 2, "mAP": NaN}\n'
        path.write_text(whole + '{"iteration": 3}\n{"iter\n{"iteration": 1, "lr": 0}\n{"iteration": 2}')
        rewind(str(path), 3)
        assert path.read_text() == whole + '{"iteration": 1, "lr": 0}\n'
        rewind(str(path), 0)
        assert path.read_text() == ""

    def test_each_step_counts_once_after_a_resume(self, cfg: CfgNode, monkeypatch) -> None:
        """Stopped when the scalars of the second epoch are written and its checkpoint is not."""
        save = Checkpointer.save

        def save_first(self: Checkpointer, name: str, **kwargs: object) -> None:
            if kwargs["epoch"] == 1:
                raise Stopped
            save(self, name, **kwargs)

        with monkeypatch.context() as patched, pytest.raises(Stopped):
            patched.setattr(Checkpointer, "save", save_first)
            train(cfg)
        metrics = Path(cfg.OUTPUT_DIR, "metrics.json")
        stopped = [json.loads(line) for line in metrics.read_text().splitlines()]
        assert sum("mAP" in line for line in stopped) == 2, "both epochs are written"
        with metrics.open("a") as file:
            file.write('{"cut off')
        train(cfg, resume=True)
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        assert [line["iteration"] for line in lines if "mAP" in line] == [1, 3]
        assert [line["iteration"] for line in lines if "cluster/number" in line] == [0, 2]
        board = EventAccumulator(cfg.OUTPUT_DIR).Reload()
        assert [event.step for event in board.Scalars("mAP")] == [1, 3]
        assert [event.step for event in board.Scalars("cluster/number")] == [0, 2]

    def test_a_run_that_starts_anew_forgets_the_one_before(self, cfg: CfgNode, monkeypatch) -> None:
        train(cfg)
        before = Path(cfg.OUTPUT_DIR, "metrics.json").read_text()

        def stop(trainer: UnsupervisedTrainer) -> None:
            raise Stopped

        with monkeypatch.context() as patched, pytest.raises(Stopped):
            patched.setattr(UnsupervisedTrainer, "before_epoch", stop)
            train(cfg)
        assert not Path(cfg.OUTPUT_DIR, "last_checkpoint").exists(), (
            "--resume would continue from the other run's weights"
        )
        assert Path(cfg.OUTPUT_DIR, "metrics.json").read_text() == "" != before
