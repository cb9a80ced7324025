"""Features without what a camera adds to all of its images."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def standardize_by_camera(
    features: Tensor | np.ndarray, cameras: Tensor | np.ndarray, *, prior: float = 10.0
) -> Tensor:
    """Subtract each camera's mean, divide by its standard deviation per coordinate, and scale rows to unit norm.

    What light, colours and view of a camera add to a feature is much the same for all of its images, and makes two
    images of one camera look alike. A few images say little of their camera, so its statistics are drawn to those of
    all images: with n images of a camera, w = n / (n + ``prior``),

        mean = w mean_camera + (1 - w) mean_all        variance = w variance_camera + (1 - w) variance_all

    Args:
        features: (N, D) floating point.
        cameras: (N,) integers, told apart by equality only. Images of unknown camera that share a number, -1 say, are
            standardised together; where no camera is known this is no camera's correction any more.
        prior: how many images the statistics of all images count for; at least 0.

    Returns:
        (N, D) unit rows of the same precision, on the same device; zero where a row is the mean itself.

    Raises:
        ValueError: for shapes or types that do not match, or a negative ``prior``.
    """
    features = torch.as_tensor(features)
    cameras = torch.as_tensor(cameras, device=features.device)
    if features.dim() != 2 or not features.is_floating_point():
        raise ValueError(
            f"features must be a floating point (N, D) matrix, got {features.dtype} {tuple(features.shape)}"
        )
    if cameras.shape != features.shape[:1] or cameras.is_floating_point():
        raise ValueError(
            f"cameras must be ({len(features)},) integers, one for each feature row, got {cameras.dtype} "
            f"{tuple(cameras.shape)}"
        )
    if prior < 0:
        raise ValueError(f"prior must be at least 0, got {prior}")
    rows = features if features.dtype == torch.float64 else features.float()
    codes, sizes = cameras.unique(return_inverse=True, return_counts=True)[1:]

    def camera_means(values: Tensor) -> Tensor:
        return values.new_zeros(len(sizes), values.shape[1]).index_add_(0, codes, values) / sizes[:, None]

    def shrunk(of_cameras: Tensor, of_all: Tensor) -> Tensor:
        weight = (sizes / (sizes + prior)).to(rows.dtype)[:, None]
        return weight * of_cameras + (1 - weight) * of_all

    means, mean = camera_means(rows), rows.mean(0)
    variances, variance = camera_means((rows - means[codes]).square()), (rows - mean).square().mean(0)
    # A coordinate that is constant in a camera stays 0 there.
    scale = shrunk(variances, variance).clamp(min=torch.finfo(rows.dtype).tiny).rsqrt()
    return F.normalize((rows - shrunk(means, mean)[codes]) * scale[codes]).to(features.dtype)
