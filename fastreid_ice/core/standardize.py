"""Removing from features what a camera adds to all of its images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class CameraStatistics:
    """The mean and spread of the features of each camera, from ``of``, for its own images and for others.

    Attributes:
        cameras: (C,) int64 in ascending order.
        means, scales: (C + 1, D), the mean, and one over the standard deviation, of each coordinate; the last row is
            for cameras without an image.
    """

    cameras: Tensor
    means: Tensor
    scales: Tensor

    @classmethod
    def of(
        cls, features: Tensor | np.ndarray, cameras: Tensor | np.ndarray, *, prior: float = 10.0
    ) -> CameraStatistics:
        """Args, errors: see ``standardize_by_camera``."""
        features, cameras = _checked(features, cameras)
        if prior < 0:
            raise ValueError(f"prior must be at least 0, got {prior}")
        if not len(features):
            raise ValueError("there are no features to take statistics of")
        rows = features if features.dtype == torch.float64 else features.float()
        names, codes, sizes = cameras.unique(return_inverse=True, return_counts=True)
        weight = (sizes / (sizes + prior)).to(rows.dtype)[:, None]

        def camera_means(values: Tensor) -> Tensor:
            return values.new_zeros(len(sizes), values.shape[1]).index_add_(0, codes, values) / sizes[:, None]

        def shrunk(of_cameras: Tensor, of_all: Tensor) -> Tensor:
            return torch.cat([weight * of_cameras + (1 - weight) * of_all, of_all[None]])

        means, mean = camera_means(rows), rows.mean(0)
        variances, variance = camera_means((rows - means[codes]).square()), (rows - mean).square().mean(0)
        # A coordinate that is constant within a camera stays 0 there.
        scales = shrunk(variances, variance).clamp(min=torch.finfo(rows.dtype).tiny).rsqrt()
        return cls(names, shrunk(means, mean), scales)

    def standardize(self, features: Tensor | np.ndarray, cameras: Tensor | np.ndarray) -> Tensor:
        """``features`` (M, D) of ``cameras`` (M,), as ``standardize_by_camera`` returns them.

        Raises:
            ValueError: for shapes or types that do not match.
        """
        features, cameras = _checked(features, cameras)
        if features.shape[1] != self.means.shape[1]:
            raise ValueError(f"features must have {self.means.shape[1]} dimensions, got {tuple(features.shape)}")
        names = self.cameras.to(cameras.device)
        own = torch.searchsorted(names, cameras.contiguous()).clamp(max=len(names) - 1)
        own = torch.where(names[own] == cameras, own, len(names))
        means, scales = (values.to(features.device)[own] for values in (self.means, self.scales))
        return F.normalize((features.to(means.dtype) - means) * scales).to(features.dtype)


def standardize_by_camera(
    features: Tensor | np.ndarray, cameras: Tensor | np.ndarray, *, prior: float = 10.0
) -> Tensor:
    """Subtract each camera's mean, divide by its standard deviation per coordinate, and scale rows to unit norm.

    The light, colours and view of a camera change the features of all its images in much the same way, and make two
    images of one camera look alike. A few images say little about their camera, so its statistics are shrunk towards
    those of all images: with n images of a camera and w = n / (n + ``prior``),

        mean = w mean_camera + (1 - w) mean_all        variance = w variance_camera + (1 - w) variance_all

    ``CameraStatistics`` does the same with the statistics of other images, such as a gallery's for a query.

    Args:
        features: (N, D) floating point.
        cameras: (N,) integers, compared for equality only. Images of unknown camera that share a number, such as -1,
            are standardised together; if no camera is known, nothing specific to a camera is removed.
        prior: the number of images for which the statistics of all images count; at least 0.

    Returns:
        (N, D) unit rows in the same precision, on the same device; zero if a row equals the mean.

    Raises:
        ValueError: for shapes or types that do not match, no row, or a negative ``prior``.
    """
    return CameraStatistics.of(features, cameras, prior=prior).standardize(features, cameras)


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
