"""Removing from features what a camera adds to all of its images."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def standardize_by_camera(
    features: Tensor | np.ndarray,
    cameras: Tensor | np.ndarray,
    *,
    prior: float = 10.0,
    reference: tuple[Tensor | np.ndarray, Tensor | np.ndarray] | None = None,
) -> Tensor:
    """Subtract each camera's mean, divide by its standard deviation per coordinate, and scale rows to unit norm.

    The light, colours and view of a camera change the features of all its images in much the same way, and make two
    images of one camera look alike. A few images say little about their camera, so its statistics are shrunk towards
    those of all images: with n images of a camera and w = n / (n + ``prior``),

        mean = w mean_camera + (1 - w) mean_all        variance = w variance_camera + (1 - w) variance_all

    Args:
        features: (N, D) floating point.
        cameras: (N,) integers, compared for equality only. Images of unknown camera that share a number, such as -1,
            are standardised together; if no camera is known, nothing specific to a camera is removed.
        prior: the number of images for which the statistics of all images count; at least 0.
        reference: features (M, D) and cameras (M,) of the images whose statistics are used, such as a gallery for
            queries; by default those of ``features`` themselves. A camera without an image there has n = 0.

    Returns:
        (N, D) unit rows in the same precision, on the same device; zero if a row equals the mean.

    Raises:
        ValueError: for shapes or types that do not match, or a negative ``prior``.
    """
    features, cameras = _checked(features, cameras)
    known, known_cameras = (features, cameras) if reference is None else _checked(*reference)
    if known.shape[1] != features.shape[1] or (len(features) and not len(known)):
        raise ValueError(f"the reference must have rows of {features.shape[1]} dimensions, got {tuple(known.shape)}")
    if prior < 0:
        raise ValueError(f"prior must be at least 0, got {prior}")
    rows, known = (x if x.dtype == torch.float64 else x.float() for x in (features, known.to(features.device)))
    names, codes, sizes = known_cameras.to(rows.device).unique(return_inverse=True, return_counts=True)

    def camera_means(values: Tensor) -> Tensor:
        return values.new_zeros(len(sizes), values.shape[1]).index_add_(0, codes, values) / sizes[:, None]

    def shrunk(of_cameras: Tensor, of_all: Tensor) -> Tensor:
        """(C + 1, D), the last row for cameras without an image."""
        weight = (sizes / (sizes + prior)).to(known.dtype)[:, None]
        return torch.cat([weight * of_cameras + (1 - weight) * of_all, of_all[None]])

    means, mean = camera_means(known), known.mean(0)
    variances, variance = camera_means((known - means[codes]).square()), (known - mean).square().mean(0)
    # A coordinate that is constant within a camera stays 0 there.
    scale = shrunk(variances, variance).clamp(min=torch.finfo(known.dtype).tiny).rsqrt()
    own = torch.searchsorted(names, cameras).clamp(max=max(len(names) - 1, 0))
    if reference is not None:
        own = torch.where(names[own] == cameras, own, len(names))
    return F.normalize((rows - shrunk(means, mean)[own]) * scale[own]).to(features.dtype)


def _checked(features: Tensor | np.ndarray, cameras: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
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
    return features, cameras
