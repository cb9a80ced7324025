"""Shared by several test modules."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from fastreid.config import CfgNode, get_cfg
from torch import nn

from fastreid_ice import add_ice_config
from fastreid_ice.engine import UnsupervisedTrainer

ROOT = Path(__file__).parent.parent
FASTREID_ICE = [sys.executable, "-m", "fastreid_ice.commands"]  # the command, in a process of its own

SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "build_timm_backbone",
    "MODEL.BACKBONE.DEPTH": "test_resnet",  # four small stages, a quarter of the time of OSNet x0_25
    "MODEL.BACKBONE.PRETRAIN": False,
    "INPUT.SIZE_TRAIN": [32, 16],
    "INPUT.SIZE_TEST": [32, 16],
    "INPUT.PADDING.SIZE": 2,
    "CLUSTER.K1": 6,
    "CLUSTER.EPS": 0.6,
    "DATASETS.NAMES": ("SyntheticPeople",),
    "DATASETS.TESTS": ("SyntheticPeople",),
    "DATASETS.SYNTHETIC.TRAIN_IDENTITIES": 6,
    "DATASETS.SYNTHETIC.TEST_IDENTITIES": 3,
    "DATASETS.SYNTHETIC.CAMERAS": 3,
    "DATASETS.SYNTHETIC.IMAGES_PER_CAMERA": 3,
    "DATALOADER.NUM_WORKERS": 0,
    "DATALOADER.NUM_INSTANCE": 4,
    "SOLVER.IMS_PER_BATCH": 8,
    "SOLVER.ITERS_PER_EPOCH": 2,
    "SOLVER.MAX_EPOCH": 2,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "TEST.EVAL_PERIOD": 1,
    "MODEL.MOMENTUM.ALPHA": 0.9,
}

# The network of the demo, for tests about networks of fast-reid and their weights.
OSNET = {
    "MODEL.BACKBONE.NAME": "build_osnet_backbone",
    "MODEL.BACKBONE.DEPTH": "x0_25",
    "MODEL.BACKBONE.FEAT_DIM": 128,
}


def small_config(**changes: Any) -> CfgNode:
    """ICE on 54 synthetic crops; further keys as KEY__KEY=value."""
    cfg = get_cfg()
    add_ice_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs" / "base-ice.yml"))
    settings = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    cfg.merge_from_list([part for item in settings.items() for part in item])
    return cfg


def osnet_config(**changes: Any) -> CfgNode:
    """``small_config`` with ``OSNET``."""
    return small_config(**(OSNET | changes))


def two_layers() -> nn.Module:
    """A backbone of 16 channels that compiles in seconds, once for all tests that run it in the same way."""
    return nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU())


def train(cfg: CfgNode, *, resume: bool = False) -> UnsupervisedTrainer:
    """Trains in this process and returns the trainer."""
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    torch.manual_seed(cfg.SEED)
    trainer = UnsupervisedTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer
