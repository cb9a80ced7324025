"""The two lists of neighbours against sorting all pairs in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastreid_ice.core import k_nearest
from fastreid_ice.core.camera_neighbors import camera_neighbors
from golden import load_golden


def sorted_lists(features: np.ndarray, cameras: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both orders of all images; ties are ordered by index, with the image itself before its camera."""
    rows = features.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    similarities = np.round(rows @ rows.T, 12)  # copies of a row are equal
    np.fill_diagonal(similarities, 2)
    other = cameras[:, None] != cameras
    index = np.broadcast_to(np.arange(len(rows)), other.shape)
    return np.lexsort((index, -similarities, other)), np.lexsort((index, -similarities, ~other))


def crowd(sizes, *, copies=0, seed=0):
    """Features of cameras with these numbers of images, in random order, some of them copies of one row."""
    generator = np.random.default_rng(seed)
    cameras = generator.permutation(np.repeat(np.arange(len(sizes)) * 5 - 3, sizes))
    features = generator.normal(size=(len(cameras), 24)).astype(np.float32) * 3
    features[generator.permutation(len(cameras))[:copies]] = features[0]
    return features, cameras


@pytest.mark.parametrize("chunk_size", [16, 1024])
@pytest.mark.parametrize(
    ("sizes", "copies"),
    [
        ([300, 200, 150], 0),
        ([300, 200, 150], 180),  # more copies than candidates: settled one by one
        ([200], 0),  # no other camera
        ([90, 3, 1, 1, 40], 0),
        ([1] * 120, 9),  # as many cameras as images
        ([3] * 50, 0),
    ],
)
def test_equals_sorting(sizes, copies, chunk_size):
    features, cameras = crowd(sizes, copies=copies)
    intra, inter = sorted_lists(features, cameras)
    for k_intra, k_inter in ((6, 21), (40, 3), (1, 1)):
        found = camera_neighbors(features, cameras, k_intra, k_inter, chunk_size=chunk_size)
        np.testing.assert_array_equal(found[0], intra[:, :k_intra])
        np.testing.assert_array_equal(found[1], inter[:, :k_inter])


def test_lists_may_name_all_images():
    features, cameras = crowd([20, 5, 1])
    for found, expected in zip(
        camera_neighbors(features, cameras, 26, 26), sorted_lists(features, cameras), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_of_one_camera_is_the_plain_list():
    features, cameras = crowd([300])
    for found in camera_neighbors(features, cameras, 12, 12):
        torch.testing.assert_close(found, k_nearest(features, 12)[1])


@pytest.mark.parametrize("name", ["base", "smallcam", "onecam", "lopsided", "wide"])
def test_lists_equal_the_reference(name):
    golden = load_golden(f"cajaccard_{name}")
    k_intra, k_inter = golden["intra_rank"].shape[1], golden["inter_rank"].shape[1]
    intra, inter = camera_neighbors(golden["features"], golden["cameras"], k_intra, k_inter)
    # The reference uses float32 distances, so two images may be swapped: no row's set differs by more.
    assert (intra.numpy() == golden["intra_rank"]).mean() > 0.999
    assert (inter.numpy() == golden["inter_rank"]).mean() > 0.999


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (r"k_intra must lie in \[1, 30\]", {"k_intra": 0}),
        (r"k_inter must lie in \[1, 30\]", {"k_inter": 31}),
        ("chunk_size must be at least 1", {"chunk_size": 0}),
    ],
)
def test_says_what_is_wrong(message, change):
    features, cameras = crowd([30])
    with pytest.raises(ValueError, match=message):
        camera_neighbors(**{"features": features, "cameras": cameras, "k_intra": 3, "k_inter": 3} | change)
