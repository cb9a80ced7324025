"""A few random crops in the layout of Market-1501, and a config that trains on them in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FOLDER = "Market-1501-v15.09.15"


def draw_tiny_market(root: Path) -> Path:
    """16 training images of 4 persons; 6 queries and 6 gallery images of 3 others; two cameras. Returns ``root``."""
    rng = np.random.default_rng(0)
    for folder, pids, count in (("bounding_box_train", range(1, 5), 2), ("query", range(5, 8), 1)):
        _draw(root / FOLDER / folder, pids, count, rng)
    _draw(root / FOLDER / "bounding_box_test", range(5, 8), 1, rng)
    return root


def _draw(folder: Path, pids: range, count: int, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    for pid in pids:
        for camera in (1, 2):
            for index in range(count):
                image = Image.fromarray(rng.integers(0, 256, (64, 32, 3), dtype=np.uint8))
                image.save(folder / f"{pid:04d}_c{camera}s1_{index:06d}_00.jpg")


def tiny_config(output_dir: Path, *overrides: Any) -> Any:
    """fast-reid's default config for OSNet x0_25 on a tiny Market-1501: 2 epochs of 2 iterations on the CPU."""
    from fastreid.config import get_cfg

    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_osnet_backbone"
    cfg.MODEL.BACKBONE.DEPTH = "x0_25"
    cfg.MODEL.BACKBONE.FEAT_DIM = 128
    cfg.MODEL.BACKBONE.PRETRAIN = False
    cfg.INPUT.SIZE_TRAIN = cfg.INPUT.SIZE_TEST = [64, 32]
    cfg.DATASETS.TESTS = ("Market1501",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = cfg.TEST.IMS_PER_BATCH = 8
    cfg.SOLVER.MAX_EPOCH = 2
    cfg.SOLVER.CHECKPOINT_PERIOD = cfg.TEST.EVAL_PERIOD = 1
    cfg.OUTPUT_DIR = str(output_dir)
    cfg.merge_from_list(list(overrides))
    output_dir.mkdir(parents=True, exist_ok=True)
    return cfg
