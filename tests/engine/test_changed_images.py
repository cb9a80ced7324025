"""A folder that changes between a run and its --resume."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from fastreid.config import CfgNode

from fastreid_ice import InputError
from fastreid_ice.data import build_training_set
from fastreid_ice.engine import UnsupervisedTrainer
from fastreid_ice.engine.hooks import ReclusterHook
from support import train


def remove_one(folder: Path) -> None:
    (folder / "00.jpg").unlink()


def add_one(folder: Path) -> None:
    shutil.copy(folder / "00.jpg", folder / "99.jpg")


def swap_one(folder: Path) -> None:
    (folder / "00.jpg").rename(folder / "99.jpg")


CHANGES = {"removed": (remove_one, 53), "added": (add_one, 55), "another of equal number": (swap_one, 54)}


@pytest.fixture
def folder(cfg: CfgNode, tmp_path: Path) -> Path:
    """54 crops on which a run has trained the first of two epochs."""
    folder = tmp_path / "crops"
    folder.mkdir()
    for number, path in enumerate(build_training_set(cfg).paths):
        shutil.copy(path, folder / f"{number:02d}.jpg")
    names = "('ClusterProxyLoss', 'HardInstanceLoss')"
    cfg.merge_from_list(
        ["DATASETS.NAMES", ("UnlabeledFolder",), "DATASETS.TESTS", (), "DATASETS.ROOT", str(folder)]
        + ["MODEL.LOSSES.NAME", names, "SOLVER.MAX_EPOCH", 1]
    )
    train(cfg)
    cfg.SOLVER.MAX_EPOCH = 2
    return folder


def resumed(cfg: CfgNode, *, epoch: int = 1) -> ReclusterHook:
    trainer = UnsupervisedTrainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_epoch == epoch
    return next(hook for hook in trainer._hooks if isinstance(hook, ReclusterHook))


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_changed_folder_ends_a_resume_or_starts_its_labels_anew(cfg: CfgNode, folder: Path, change: str) -> None:
    assert len(resumed(cfg).labels) == 54
    work, count = CHANGES[change]
    work(folder)
    sentence = rf"--resume: .*/run' was trained on 54 images, .* the present {count}; .*DATASETS.CHANGED relabel"
    with pytest.raises(InputError, match=sentence) as error:
        train(cfg, resume=True)
    assert "\n" not in str(error.value)
    cfg.DATASETS.CHANGED = "relabel"
    assert resumed(cfg).labels is None
    trained = train(cfg, resume=True)
    assert trained.start_epoch == 1
    cfg.merge_from_list(["DATASETS.CHANGED", "error", "SOLVER.MAX_EPOCH", 3])
    assert len(resumed(cfg, epoch=2).labels) == count, "the run continues with the changed set"


def test_a_folder_that_moved_is_the_same(cfg: CfgNode, folder: Path, tmp_path: Path) -> None:
    labels = resumed(cfg).labels
    cfg.DATASETS.ROOT = str(folder.rename(tmp_path / "moved"))
    assert torch.equal(resumed(cfg).labels, labels)
