"""Files of weights as users have them: broken, of another kind, or made to run code. Each error gives the reason."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fastreid.config import CfgNode

from fastreid_ice import InputError
from fastreid_ice.engine import Checkpointer, UnsupervisedTrainer
from support import osnet_config, small_config, train


class RunsCode:
    """A pickle that runs code when it is loaded."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran",)


def cut(path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])


BROKEN = "is cut off, or was not written by torch.save; use another file"
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "code": (lambda path: torch.save({"model": RunsCode()}, path), "holds posix.mkdir, .* could run code; use a file"),
    "old code": (
        lambda path: torch.save({"model": RunsCode()}, path, _use_new_zipfile_serialization=False),
        "holds posix.mkdir, .* could run code; use a file",
    ),
    "code in arguments": (
        lambda path: torch.save({"args": argparse.Namespace(lr=RunsCode())}, path),
        "holds posix.mkdir, .* could run code; use a file",
    ),
    "cut off": (cut, BROKEN),
    "empty": (Path.touch, BROKEN),
    "a text": (lambda path: path.write_text("epoch 7: mAP 80.1\n"), BROKEN),  # KeyError 101, the letter e
    "another text": (lambda path: path.write_text("not weights"), BROKEN),
    "zeros": (lambda path: path.write_bytes(bytes(4000)), BROKEN),
    "a web page": (lambda path: path.write_text("<!DOCTYPE html>\n<html>404</html>"), BROKEN),
}


@pytest.fixture(params=list(FILES))
def bad_file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A file of weights, and the error for it."""
    monkeypatch.chdir(tmp_path)
    write, reason = FILES[request.param]
    write(tmp_path / "bad.pth")
    return tmp_path / "bad.pth", reason


class TestReasons:
    def test_of_weights(self, cfg: CfgNode, bad_file: tuple[Path, str]) -> None:
        path, reason = bad_file
        with pytest.raises(InputError, match=f"^cannot load weights from .*/bad.pth: it {reason}") as raised:
            Checkpointer(torch.nn.Linear(2, 2)).load(str(path))
        assert "\n" not in str(raised.value) and "weights_only" not in str(raised.value)
        assert not Path("ran").exists()

    def test_of_a_backbone(self, bad_file: tuple[Path, str]) -> None:
        path, reason = bad_file
        cfg = osnet_config(MODEL__BACKBONE__PRETRAIN=True, MODEL__BACKBONE__PRETRAIN_PATH=str(path))
        sentence = f"^MODEL.BACKBONE.PRETRAIN_PATH: cannot load weights from .*/bad.pth: it {reason}"
        with pytest.raises(InputError, match=sentence) as raised:
            UnsupervisedTrainer.build_model(cfg)
        assert "\n" not in str(raised.value) and "weights_only" not in str(raised.value)
        assert not Path("ran").exists()


def test_the_reason_for_a_backbone_of_timm(bad_file: tuple[Path, str]) -> None:
    path, reason = bad_file
    changes = {"MODEL.BACKBONE.NAME": "build_timm_backbone", "MODEL.BACKBONE.DEPTH": "test_resnet.r160_in1k"}
    changes |= {"MODEL.BACKBONE.PRETRAIN": True, "MODEL.BACKBONE.PRETRAIN_PATH": str(path)}
    with pytest.raises(InputError, match=f"^MODEL.BACKBONE.PRETRAIN_PATH .*/bad.pth: it {reason[:11]}") as raised:
        UnsupervisedTrainer.build_model(small_config(**changes))
    assert "weights_only" not in str(raised.value) and not Path("ran").exists()


@pytest.mark.parametrize("content", [[1, 2], {"weight": 5}, torch.zeros(3)])
def test_a_backbone_of_something_else(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "bad.pth")
    cfg = osnet_config(MODEL__BACKBONE__PRETRAIN=True, MODEL__BACKBONE__PRETRAIN_PATH=str(tmp_path / "bad.pth"))
    with pytest.raises(InputError, match=r"^MODEL.BACKBONE.PRETRAIN_PATH '.*bad.pth' holds no weights of"):
        UnsupervisedTrainer.build_model(cfg)


@pytest.mark.parametrize("content", [{"weight": 5}, {5: torch.zeros(3)}, {"weight": [1.0]}])
def test_a_checkpoint_of_something_else(tmp_path: Path, content: dict) -> None:
    torch.save({"model": content}, tmp_path / "bad.pth")
    with pytest.raises(InputError, match="bad.pth is not a fast-reid checkpoint"):
        Checkpointer(torch.nn.Linear(2, 2)).load(str(tmp_path / "bad.pth"))


def test_the_best_weights_of_a_run_that_is_resumed(cfg: CfgNode, tmp_path: Path, monkeypatch) -> None:
    """The checkpoint has their metric, so a resume does not open the file, whatever it contains."""
    monkeypatch.chdir(tmp_path)
    cfg.SOLVER.MAX_EPOCH = 1
    train(cfg)
    FILES["code"][0](tmp_path / "bad.pth")
    shutil.copy("bad.pth", Path(cfg.OUTPUT_DIR, "model_best.pth"))
    cfg.SOLVER.MAX_EPOCH = 2
    assert train(cfg, resume=True).start_epoch == 1
    assert not Path("ran").exists() and Path(cfg.OUTPUT_DIR, "model_final.pth").is_file()
