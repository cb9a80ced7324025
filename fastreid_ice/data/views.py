"""The views of an image that the losses read: strong ones, each augmented separately, and weak ones, which are not.

They are made from whole batches on the device of the model. fast-reid's AUTOAUG, CJ, AFFINE, AUGMIX, RPT and CROP work
on single images. With one of them on, all views are made from resized crops by fast-reid's transforms, in the loader's
workers.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from fastreid.config import CfgNode
from fastreid.data.transforms import build_transforms
from torch import Generator, Tensor
from torchvision.transforms import Compose

from ..errors import InputError
from .augment import Augmentation, RandomGaussianBlur, build_augmentation, build_erasing
from .crops import Transform

SINGLE_IMAGE_STEPS = ("AUTOAUG", "CJ", "AFFINE", "AUGMIX", "RPT", "CROP")


def crop_size(cfg: CfgNode, key: str) -> tuple[int, int]:
    """(H, W) from ``INPUT.<key>``.

    Raises:
        InputError: it does not consist of two positive integers.
    """
    size = cfg.INPUT[key]
    if len(size) != 2 or not all(isinstance(side, int) and side >= 1 for side in size):
        raise InputError(f"INPUT.{key} {size} must be a height and a width, as all crops get the same size")
    return tuple(size)


def build_views(cfg: CfgNode, names: Iterable[str]) -> dict[str, Augmentation]:
    """View name -> the augmentation that makes it from a batch; empty if ``build_transforms_of_views`` makes them."""
    if _needs_single_images(cfg):
        return {}
    strong = build_augmentation(cfg)
    return {name: weak_view if name.endswith("weak") else strong for name in names}


def build_transforms_of_views(cfg: CfgNode, names: Iterable[str]) -> dict[str, Transform]:
    """View name -> the transform that makes it from a single crop, if ``INPUT`` requires that; otherwise empty."""
    if not _needs_single_images(cfg):
        return {}
    without_erasing = cfg.clone()
    without_erasing.defrost()
    without_erasing.INPUT.REA.ENABLED = False
    steps = list(build_transforms(without_erasing, is_train=True).transforms)
    if cfg.INPUT.BLUR.ENABLED:
        after_to_tensor = 1 + next(i for i, step in enumerate(steps) if type(step).__name__ == "ToTensor")
        blur = RandomGaussianBlur(cfg.INPUT.BLUR.PROB, tuple(cfg.INPUT.BLUR.SIGMA))
        steps.insert(after_to_tensor, _OfSingleImages(blur))
    if cfg.INPUT.REA.ENABLED:
        steps.append(_OfSingleImages(build_erasing(cfg)))
    strong, weak = Compose(steps), build_test_transform(cfg, "SIZE_TRAIN")
    return {name: weak if name.endswith("weak") else strong for name in names}


def build_test_transform(cfg: CfgNode, key: str) -> Transform:
    """fast-reid's test transform, to the size ``INPUT.<key>``."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.SIZE_TEST = cfg.INPUT[key]
    return build_transforms(cfg, is_train=False)


def weak_view(images: Tensor, generator: Generator) -> Tensor:
    """The images unchanged, as float32."""
    return images.float()


def _needs_single_images(cfg: CfgNode) -> bool:
    return any(cfg.INPUT[step].ENABLED for step in SINGLE_IMAGE_STEPS)


class _OfSingleImages:
    """An augmentation of batches as a transform of single images."""

    def __init__(self, augmentation: Augmentation) -> None:
        self.augmentation = augmentation

    def __call__(self, image: Tensor) -> Tensor:
        return self.augmentation(image[None], torch.default_generator)[0]
