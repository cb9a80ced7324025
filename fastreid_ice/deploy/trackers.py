"""What trackers feed to the encoder of appearance that they load, and an encoder that takes it."""

from __future__ import annotations

from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor

from ..modeling import MomentumReID


class Feed(NamedTuple):
    """A tracker feeds (image / 255 - mean) / std, where image is RGB in [0, 255]; one value for each channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def of(self, images: Tensor) -> Tensor:
        """What the tracker makes of (N, 3, H, W) images in [0, 255]."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in self)
        return (images / 255 - mean) / std


# Both resize each crop to the height and width that the graph states, and take any number of crops at once. Found in
# the source of boxmot 25.0.0 and ultralytics 8.4.190, and tested with them.
TRACKERS = {
    "boxmot": Feed((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "ultralytics": Feed((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def fed_by(feed: Feed, model: MomentumReID) -> MomentumReID:
    """A copy of ``model`` with the same features for what ``feed`` makes of an image as ``model`` has for the image.

    The mean and the deviation by which the network normalises are replaced, so that nothing is computed twice.
    """
    model = deepcopy(model)
    model.pixel_mean.copy_(feed.of(model.pixel_mean))
    model.pixel_std.div_(255 * torch.tensor(feed.std).view(3, 1, 1))
    return model
