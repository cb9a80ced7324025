"""Augmentations of whole batches, on the device of the batch, with the distributions of fast-reid's transforms.

Every image has its own parameters. They are drawn on the CPU, so that the same seed gives the same views on any device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from torch import Generator, Tensor
from torchvision.transforms.v2.functional import pad

from ..errors import InputError

# (B, 3, H, W) images in [0, 255] and a CPU generator to images of the same shape.
Augmentation = Callable[[Tensor, Generator], Tensor]


def build_augmentation(cfg: CfgNode) -> Augmentation:
    """fast-reid's training transform after resizing (``INPUT.*``), with ``INPUT.BLUR`` before erasing."""
    flip, padding, blur = cfg.INPUT.FLIP, cfg.INPUT.PADDING, cfg.INPUT.BLUR
    steps: list[Augmentation] = []
    if flip.ENABLED or padding.ENABLED:
        steps.append(RandomFlipCrop(flip.PROB * flip.ENABLED, padding.SIZE * padding.ENABLED, padding.MODE))
    if blur.ENABLED:
        steps.append(RandomGaussianBlur(blur.PROB, tuple(blur.SIGMA)))
    if cfg.INPUT.REA.ENABLED:
        steps.append(build_erasing(cfg))
    return Augment(steps)


def build_erasing(cfg: CfgNode) -> RandomErasing:
    """Random erasing as ``INPUT.REA`` describes it.

    Raises:
        InputError: a value out of range.
    """
    node = cfg.INPUT.REA
    try:
        return RandomErasing(
            node.PROB,
            node.VALUE,
            area=tuple(node.AREA),
            ratio=tuple(node.RATIO),
            ratio_draw=node.RATIO_DRAW,
            attempts=node.ATTEMPTS,
        )
    except ValueError as error:
        raise InputError(f"INPUT.REA: {error}") from error


class Augment:
    """Several augmentations, one after the other; the result is float32."""

    def __init__(self, steps: Sequence[Augmentation]) -> None:
        self.steps = steps

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        for step in self.steps:
            images = step(images, generator)
        return images.float()


class RandomFlipCrop:
    """Mirrors images left to right with probability ``prob``, and crops them from a padded copy at a random place.

    Args:
        prob: of each image.
        padding: pixels on each side; offsets are uniform in 0..2 * padding.
        mode: how images are padded: "constant" (black), "edge", "reflect" or "symmetric".
    """

    def __init__(self, prob: float, padding: int, mode: str = "constant") -> None:
        self.prob = prob
        self.padding = padding
        self.mode = mode

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        batch, channels, height, width = images.shape
        tops, lefts = torch.randint(2 * self.padding + 1, (2, batch, 1), generator=generator)
        mirrored = torch.rand(batch, 1, generator=generator) < self.prob
        rows, columns = tops + torch.arange(height), lefts + torch.arange(width)
        columns = torch.where(mirrored, columns.flip(1), columns)

        padded = pad(images, [self.padding], padding_mode=self.mode)
        rows, columns = rows.to(images.device, non_blocking=True), columns.to(images.device, non_blocking=True)
        pixels = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).view(batch, 1, -1)
        return padded.flatten(2).gather(2, pixels.expand(-1, channels, -1)).view_as(images)


class RandomGaussianBlur:
    """Blurs an image with probability ``prob``, with a standard deviation drawn uniformly from ``sigma`` (pixels).

    The filter is a Gaussian up to three standard deviations; pixels at the border are repeated beyond it.
    """

    def __init__(self, prob: float, sigma: tuple[float, float]) -> None:
        self.prob = prob
        self.sigma = sigma

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        images = images.float()
        chosen = (torch.rand(len(images), generator=generator) < self.prob).nonzero().flatten()
        sigma = torch.empty(len(chosen), 1).uniform_(*self.sigma, generator=generator)
        if not len(chosen):
            return images
        radius = math.ceil(3 * self.sigma[1])
        distance = torch.arange(-radius, radius + 1)
        kernels = torch.exp(-(distance**2) / (2 * sigma.clamp(min=1e-3) ** 2))
        chosen, kernels = chosen.to(images.device, non_blocking=True), kernels / kernels.sum(1, keepdim=True)

        sharp = images[chosen]
        planes = F.pad(sharp, [radius] * 4, mode="replicate").flatten(0, 1)[None]
        kernels = kernels.repeat_interleave(images.shape[1], 0).to(images.device, non_blocking=True)
        planes = F.conv2d(planes, kernels[:, None, None, :], groups=len(kernels))
        planes = F.conv2d(planes, kernels[:, None, :, None], groups=len(kernels))
        return images.index_copy(0, chosen, planes.view_as(sharp))


class RandomErasing:
    """Paints a random rectangle over an image with probability ``prob`` (Zhong et al., AAAI 2020).

    Of ``attempts`` random rectangles, the first that is lower and narrower than the image is used, at a uniformly drawn
    place; if there is none, the image does not change. The defaults are those of torchvision, and thus of fast-reid.

    Args:
        prob: of each image.
        value: colour of the rectangle, one number or one per channel.
        area: smallest and largest share of the image's area, drawn uniformly in between.
        ratio: smallest and largest ratio of height to width.
        ratio_draw: "log" if the logarithm of the ratio is uniform, or "uniform" if the ratio is.
        attempts: rectangles drawn per image.

    Raises:
        ValueError: for a value out of range.
    """

    def __init__(
        self,
        prob: float,
        value: Sequence[float],
        *,
        area: tuple[float, float] = (0.02, 0.33),
        ratio: tuple[float, float] = (0.3, 3.3),
        ratio_draw: str = "log",
        attempts: int = 10,
    ) -> None:
        for name, bounds, most in (("AREA", area, 1), ("RATIO", ratio, math.inf)):
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] <= most:
                raise ValueError(f"{name} {bounds} must be two numbers above 0 in ascending order, {most} at the most")
        if ratio_draw not in ("log", "uniform"):
            raise ValueError(f"RATIO_DRAW {ratio_draw!r} must be 'log' or 'uniform'")
        if attempts < 1:
            raise ValueError(f"ATTEMPTS {attempts} must be at least 1")
        self.prob = prob
        self.value = torch.tensor(value).view(-1, 1, 1)
        self.area = area
        self.ratio = ratio
        self.ratio_draw = ratio_draw
        self.attempts = attempts

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        batch, _, height, width = images.shape
        shape = (batch, self.attempts)
        areas = height * width * torch.empty(shape).uniform_(*self.area, generator=generator)
        if self.ratio_draw == "log":
            ratios = torch.empty(shape).uniform_(*map(math.log, self.ratio), generator=generator).exp()
        else:
            ratios = torch.empty(shape).uniform_(*self.ratio, generator=generator)
        heights, widths = (areas * ratios).sqrt().round(), (areas / ratios).sqrt().round()
        fits = (heights < height) & (widths < width)
        first = fits.int().argmax(1, keepdim=True)
        painted = (torch.rand(batch, 1, generator=generator) < self.prob) & fits.gather(1, first)
        heights, widths = heights.gather(1, first) * painted, widths.gather(1, first) * painted
        places = torch.rand(2, batch, 1, generator=generator)
        rows = _between(places[0], heights, height).to(images.device, non_blocking=True)
        columns = _between(places[1], widths, width).to(images.device, non_blocking=True)

        mask = rows[:, None, :, None] & columns[:, None, None, :]
        value = self.value.to(images.device, non_blocking=True)
        return images.float().lerp(value, mask.float())  # exact at 0 and 1, faster than where


def _between(place: Tensor, length: Tensor, total: int) -> Tensor:
    """(B, total) bool, True for ``length`` (B, 1) pixels; ``place`` (B, 1), in [0, 1), is the relative start."""
    start = (place * (total - length + 1)).floor()
    pixels = torch.arange(total)
    return (pixels >= start) & (pixels < start + length)
