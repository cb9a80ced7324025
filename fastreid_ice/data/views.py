"""The views of an image, and the dataset that decodes an image once and returns those that are asked for.

A batch is a dict: one (B, 3, H, W) float tensor in [0, 255] per view, and (B,) int64 tensors (labels, cameras, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from fastreid.config import CfgNode
from fastreid.data.data_utils import read_image
from fastreid.data.transforms import build_transforms
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms as T

from ..config import InputError

Transform = Callable[[Image.Image], Tensor]


class RandomGaussianBlur:
    """Blurs an image with probability ``prob``, by a radius drawn uniformly from ``sigma`` (pixels)."""

    def __init__(self, prob: float, sigma: tuple[float, float]) -> None:
        self.prob = prob
        self.sigma = sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        if torch.rand(()).item() >= self.prob:
            return image
        low, high = self.sigma
        return image.filter(ImageFilter.GaussianBlur(low + (high - low) * torch.rand(()).item()))


def build_strong_transform(cfg: CfgNode) -> Transform:
    """fast-reid's training transform (``INPUT.*``), with ``INPUT.BLUR`` between the geometric part and the erasing."""
    steps = list(build_transforms(cfg, is_train=True).transforms)
    if cfg.INPUT.BLUR.ENABLED:
        to_tensor = next(i for i, step in enumerate(steps) if type(step).__name__ == "ToTensor")
        steps.insert(to_tensor, RandomGaussianBlur(cfg.INPUT.BLUR.PROB, tuple(cfg.INPUT.BLUR.SIGMA)))
    return T.Compose(steps)


def build_weak_transform(cfg: CfgNode) -> Transform:
    """Resizing alone, to the size of the strong views."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.SIZE_TEST = cfg.INPUT.SIZE_TRAIN
    return build_transforms(cfg, is_train=False)


class ImageViews(Dataset):
    """Images by position, each decoded once and passed through every transform.

    Every mode of Pillow becomes RGB of 8 bits, and an image is turned upright as its EXIF tag says, as in fast-reid.

    Args:
        paths: N image files.
        transforms: view name -> transform.
        columns: name -> (N,) int64 tensor; item i carries entry i of each.
        skip_unreadable: give a black image and ``readable`` 0 in place of an error.
    """

    def __init__(
        self,
        paths: Sequence[str],
        transforms: Mapping[str, Transform],
        columns: Mapping[str, Tensor],
        *,
        skip_unreadable: bool = False,
    ) -> None:
        self.paths = paths
        self.transforms = transforms
        self.columns = columns
        self.skip_unreadable = skip_unreadable

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        item: dict[str, Tensor | int] = {name: int(column[index]) for name, column in self.columns.items()}
        item["indices"] = int(index)
        item["readable"] = 1
        try:
            image = read_image(self.paths[index])
        except OSError as error:
            if not self.skip_unreadable:
                raise InputError(
                    f"{error}; remove it, or skip such training images with DATALOADER.UNREADABLE skip"
                ) from error
            image = Image.new("RGB", (1, 1))
            item["readable"] = 0
        for view, transform in self.transforms.items():
            item[view] = transform(image)
        return item


class LabelledViews(ImageViews):
    """ImageViews of one epoch, for training: ``columns["targets"]`` holds pseudo labels.

    With ``skip_unreadable``, an image that was readable when its epoch was clustered and is not any more gives way to
    the next one with its label; the next clustering leaves it out and counts it.
    """

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        item = super().__getitem__(index)
        if item["readable"]:
            return item
        targets = self.columns["targets"]
        same = (targets == targets[index]).nonzero().flatten()
        for other in torch.cat([same[same > index], same[same < index]]).tolist():
            item = super().__getitem__(other)
            if item["readable"]:
                return item
        raise InputError(
            f"none of the {len(same)} images of one cluster can be read any more, among them {self.paths[index]}; "
            "is their folder still there?"
        )
