"""A run that is killed at random moments and resumed ends as if nothing had happened."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from fastreid.config import CfgNode
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from torch import Tensor, nn

from processes import Process
from support import train

KILLS = 20


@BACKBONE_REGISTRY.register()
def build_tiny_backbone(cfg: CfgNode) -> nn.Module:
    """One layer: most of the time is then our code and fast-reid's, and a process needs little time."""
    return nn.Sequential(nn.Conv2d(3, 16, 7, 4), nn.BatchNorm2d(16), nn.ReLU())


def live(cfg: CfgNode) -> None:
    """One process: it trains from the last checkpoint, if there is one, to the end."""
    train(cfg, resume=True)


def result(cfg: CfgNode) -> tuple[dict[str, Tensor], dict[str, Tensor], list[tuple]]:
    """The last and the best weights, and the scalars in metrics.json that do not depend on the steps before."""
    folder = Path(cfg.OUTPUT_DIR)
    last, best = (torch.load(folder / f"model_{name}.pth", weights_only=True)["model"] for name in ("final", "best"))
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    names = ("cluster/number", "cluster/churn", "lr", "mAP", "best/mAP", "best/epoch")
    return last, best, [(line["iteration"], name, line[name]) for line in lines for name in names if name in line]


def assert_equal(found: tuple, expected: tuple) -> None:
    for weights, others in zip(found[:2], expected[:2], strict=True):
        assert weights.keys() == others.keys()
        assert all(torch.equal(value, others[name]) for name, value in weights.items())
    assert found[2] == expected[2]


@pytest.mark.slow
def test_twenty_kills(cfg: CfgNode, tmp_path: Path) -> None:
    """Each process gets a random share of the time of a whole run; runs that end earlier are started again."""
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_tiny_backbone", "MODEL.BACKBONE.FEAT_DIM", 16])
    cfg.SOLVER.MAX_EPOCH = 3
    cfg.OUTPUT_DIR = str(tmp_path / "whole")
    Process(int).wait()  # after it the server has imported everything
    start = time.monotonic()
    assert Process(live, cfg).wait() == 0
    whole = time.monotonic() - start
    expected = result(cfg)

    moments = random.Random(0)
    kills, runs, epochs, code = 0, 0, set(), None
    cfg.OUTPUT_DIR = str(tmp_path / "run0")
    while kills < KILLS or code != 0:
        process = Process(live, cfg)
        try:
            code = process.wait(moments.uniform(0, whole) if kills < KILLS else None)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code == -signal.SIGKILL:
            kills += 1
            epochs.add(len(list(Path(cfg.OUTPUT_DIR).glob("model_[0-9]*.pth"))))
            continue
        assert code == 0
        assert_equal(result(cfg), expected)
        runs += 1
        cfg.OUTPUT_DIR = str(tmp_path / f"run{runs}")
    assert kills == KILLS and runs >= 1
    assert len(epochs) > 1, "killed in several epochs"
