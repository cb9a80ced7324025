"""Standardising within cameras, against the formula in a loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastreid_ice.core import CameraStatistics, standardize_by_camera


def crowd(dtype=torch.float64):
    """Cameras of 40, 7 and 1 images, each with an offset and a scale, in random order."""
    generator = torch.Generator().manual_seed(0)
    cameras = torch.tensor([-1] * 40 + [10**9] * 7 + [3])[torch.randperm(48, generator=generator)]
    features = torch.randn(48, 6, generator=generator, dtype=torch.float64)
    for number, camera in enumerate(cameras.unique()):
        features[cameras == camera] *= 1 + number
        features[cameras == camera] += 3 * number
    return features.to(dtype), cameras


@pytest.mark.parametrize("prior", [0, 10.0, 1e12])
def test_equals_a_loop(prior):
    features, cameras = crowd()
    expected = torch.empty_like(features)
    for camera in cameras.unique():
        own = features[cameras == camera]
        weight = len(own) / (len(own) + prior)
        mean = weight * own.mean(0) + (1 - weight) * features.mean(0)
        variance = weight * own.var(0, correction=0) + (1 - weight) * features.var(0, correction=0)
        expected[cameras == camera] = F.normalize((own - mean) / variance.clamp(min=1e-300).sqrt())
    before = features.clone()
    torch.testing.assert_close(standardize_by_camera(features, cameras, prior=prior), expected)
    torch.testing.assert_close(features, before, rtol=0, atol=0)


def test_statistics_of_other_images():
    """The images themselves come out as without; a camera without an image gets the statistics of all images."""
    features, cameras = crowd()
    whole = standardize_by_camera(features, cameras)
    statistics = CameraStatistics.of(features, cameras)
    some = [0, 5, 20, 47]
    torch.testing.assert_close(statistics.standardize(features[some], cameras[some]), whole[some])
    found = statistics.standardize(features[some], torch.tensor([-7, 5, 11, 10**10]))
    expected = (features[some] - features.mean(0)) / features.std(0, correction=0)
    torch.testing.assert_close(found, F.normalize(expected))
    with pytest.raises(ValueError, match="features must have 6 dimensions"):
        statistics.standardize(features[:, :5], cameras)


def test_undoes_what_a_camera_adds():
    generator = torch.Generator().manual_seed(0)
    people = torch.randn(300, 8, generator=generator, dtype=torch.float64)
    cameras = torch.tensor([0, 1, 2]).repeat_interleave(300)
    seen = torch.cat([people * (1 + camera) + 5 * camera for camera in range(3)])
    first, *others = standardize_by_camera(seen, cameras, prior=0).chunk(3)
    for other in others:
        torch.testing.assert_close(other, first)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_keeps_the_precision(dtype):
    features, cameras = crowd(dtype)
    found = standardize_by_camera(features, cameras)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double().norm(dim=1), torch.ones(48, dtype=torch.float64), rtol=0, atol=1e-2)


def test_takes_arrays():
    features, cameras = crowd()
    found = standardize_by_camera(features.numpy(), cameras.numpy())
    torch.testing.assert_close(found, standardize_by_camera(features, cameras))


def test_a_constant_coordinate_says_nothing():
    features, cameras = crowd()
    features[:, 2] = 4
    found = standardize_by_camera(features, cameras)
    torch.testing.assert_close(found[:, 2], torch.zeros(48, dtype=torch.float64))
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("features must be a floating point", {"features": torch.zeros(48, 3, dtype=torch.int64)}),
        (r"cameras must be \(48,\) integers", {"cameras": torch.zeros(47, dtype=torch.int64)}),
        (r"cameras must be \(48,\) integers", {"cameras": torch.zeros(48)}),
        ("prior must be at least 0", {"prior": -1}),
        ("no features to take statistics of", {"features": torch.zeros(0, 3), "cameras": torch.zeros(0).long()}),
    ],
)
def test_says_what_is_wrong(message, change):
    features, cameras = crowd()
    with pytest.raises(ValueError, match=message):
        standardize_by_camera(**{"features": features, "cameras": cameras} | change)
