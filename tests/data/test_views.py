"""Which views are made from batches and which from single images, and their content."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fastreid.config import CfgNode
from PIL import Image
from torch import Generator

from fastreid_ice import InputError
from fastreid_ice.data import (
    PseudoLabelLoader,
    build_test_loader,
    build_training_set,
    build_transforms_of_views,
    build_views,
)
from fastreid_ice.data.views import SINGLE_IMAGE_STEPS, crop_size
from support import small_config

VIEWS = ("momentum", "momentum_weak", "online")


def test_strong_views_are_drawn_apart_and_weak_ones_not_at_all() -> None:
    cfg = small_config()
    views = build_views(cfg, VIEWS)
    assert tuple(views) == VIEWS and not build_transforms_of_views(cfg, VIEWS)
    generator = Generator().manual_seed(0)
    images = torch.randint(256, (4, 3, 32, 16), dtype=torch.uint8)
    made = {name: view(images, generator) for name, view in views.items()}
    assert not torch.equal(made["online"], made["momentum"])
    assert torch.equal(made["momentum_weak"], images.float())


@pytest.mark.parametrize("step", SINGLE_IMAGE_STEPS)
def test_every_transform_of_fastreid_still_works(cfg: CfgNode, step: str) -> None:
    cfg.INPUT[step].ENABLED = True
    if "PROB" in cfg.INPUT[step]:
        cfg.INPUT[step].PROB = 1.0
    if step == "CROP":
        cfg.INPUT.CROP.SIZE, cfg.INPUT.PADDING.ENABLED = [24, 12], False
    images = build_training_set(cfg)
    loader = PseudoLabelLoader.from_config(cfg, images, frozenset(VIEWS))
    loader.reset(images.identities, seed=0)
    batch = next(loader)
    size = (24, 12) if step == "CROP" else (32, 16)
    assert all(batch[view].shape == (8, 3, *size) and batch[view].dtype == torch.float32 for view in VIEWS)
    assert not torch.equal(batch["online"], batch["momentum"])
    test, _ = build_test_loader(cfg, "SyntheticPeople")
    assert next(iter(test))["images"].shape[2:] == size


def test_blur_goes_with_transforms_of_single_images() -> None:
    changes = {f"INPUT.{name}.ENABLED": False for name in ("FLIP", "PADDING", "REA")}
    changes |= {"INPUT.CJ.ENABLED": True, "INPUT.CJ.PROB": 0.0, "INPUT.BLUR.SIGMA": (2.0, 2.0), "INPUT.BLUR.PROB": 1.0}
    rough = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 16, 3), np.uint8))
    transforms = build_transforms_of_views(small_config(**changes), VIEWS)
    assert transforms["online"](rough).std() < 0.5 * transforms["momentum_weak"](rough).std()


@pytest.mark.parametrize("size", [[128], [-1, -1], [32, 16, 3]])
def test_sizes_that_make_no_batch_are_refused(size: list[int]) -> None:
    with pytest.raises(InputError, match=r"INPUT.SIZE_TRAIN \[.*\] must be a height and a width"):
        crop_size(small_config(**{"INPUT.SIZE_TRAIN": size}), "SIZE_TRAIN")
