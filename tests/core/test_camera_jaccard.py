"""The camera-aware Jaccard distance against the authors' dense matrices, and against a loop over sets."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from dense import dense, sklearn_labels
from fastreid_ice.core import camera_jaccard_graph, camera_reranked_blocks, dbscan
from golden import load_golden

FILES = ["base", "six33", "smallcam", "onecam", "lopsided", "wide", "dup", "noqe"]
NUMBERS = ("k1_intra", "k1_inter", "k2_intra", "k2_inter")
TOLERANCE = 1e-5


def numbers(golden) -> dict[str, int]:
    return {name: int(golden[name]) for name in NUMBERS}


@pytest.mark.parametrize("convert", [np.asarray, torch.tensor])
@pytest.mark.parametrize("name", FILES)
def test_equals_the_reference(name, convert):
    """On inputs for which the reference's distance does not depend on how it breaks ties."""
    golden = load_golden(f"cajaccard_{name}")
    features, cameras = convert(golden["features"]), convert(golden["cameras"])
    graph = camera_jaccard_graph(features, cameras, **numbers(golden))
    assert graph.dtype == np.float32
    assert graph.has_canonical_format
    assert graph.data.max() < 1
    stable = np.ix_(golden["stable"], golden["stable"])
    np.testing.assert_allclose(dense(graph)[stable], golden["jaccard"][stable], rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(dense(graph), dense(graph).T)
    np.testing.assert_array_equal(np.asarray(features), golden["features"])


@pytest.mark.parametrize("name", [name for name in FILES if name != "dup"])
def test_clusters_equal_the_reference(name):
    golden = load_golden(f"cajaccard_{name}")
    graph = camera_jaccard_graph(golden["features"], golden["cameras"], **numbers(golden))
    for eps, labels, margin in zip(golden["eps"], golden["dbscan_labels"], golden["dbscan_margin"], strict=True):
        if margin > TOLERANCE:
            np.testing.assert_array_equal(dbscan(graph, eps=eps, min_samples=int(golden["min_samples"])), labels)
            np.testing.assert_array_equal(sklearn_labels(dense(graph), eps, int(golden["min_samples"])), labels)


@pytest.mark.parametrize("max_distance", [0.2, 0.5, 0.999])
def test_max_distance_only_drops_entries(max_distance):
    golden = load_golden("cajaccard_base")
    build = partial(camera_jaccard_graph, golden["features"], golden["cameras"])
    whole = build().tocoo()
    near = whole.data <= max_distance
    cut = build(max_distance=max_distance).tocoo()
    for mine, theirs in ((cut.row, whole.row), (cut.col, whole.col), (cut.data, whole.data)):
        np.testing.assert_array_equal(mine, theirs[near])


def by_definition(features, cameras, k1_intra, k1_inter, k2_intra, k2_inter):
    """(N, N) distances in float64, by lists and sets; ties are ordered by index, with the image itself first."""
    everyone = range(len(features))
    rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarities = rows @ rows.T

    def order(i, other_first):
        return sorted(
            everyone, key=lambda j: ((cameras[j] != cameras[i]) != other_first, j != i, -similarities[i, j], j)
        )

    intra, inter = [order(i, False) for i in everyone], [order(i, True) for i in everyone]
    weights = np.zeros_like(similarities)
    for i in everyone:
        expanded = {j for j in intra[i][: k1_intra + 1] if i in intra[j][: k1_intra + 1]}
        expanded |= {j for j in inter[i][: k1_inter + 1] if i in inter[j][: k1_inter + 1]}
        for j in expanded:
            weights[i, j] = np.exp(2 * similarities[i, j] - 2)
        weights[i] /= weights[i].sum()
    averaged = np.stack([weights[intra[i][:k2_intra] + inter[i][:k2_inter]].mean(0) for i in everyone])
    shared = np.minimum(averaged[:, None], averaged[None]).sum(2)
    return np.maximum(0, 1 - shared / (2 - shared))


@pytest.mark.parametrize("constants", [(5, 20, 2, 4), (3, 4, 0, 7), (30, 2, 40, 1), (1, 1, 1, 0)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_equals_the_definition(constants, dtype):
    """Neither sorted by camera nor of unit norm, with a camera of one image and camera ids of any kind."""
    generator = np.random.default_rng(0)
    cameras = np.array([-1, 10**9, 7, 3])[generator.integers(0, 3, 60)]
    cameras[17] = 3
    features = (generator.normal(size=(6, 8))[generator.integers(0, 6, 60)] + generator.normal(size=(60, 8))).astype(
        dtype
    )
    graph = camera_jaccard_graph(features, cameras, **dict(zip(NUMBERS, constants, strict=True)))
    expected = by_definition(features.astype(np.float64), cameras, *constants)
    np.testing.assert_allclose(dense(graph), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("chunk_size", [7, 256])
def test_reranking_equals_the_reference(chunk_size):
    golden = load_golden("cajaccard_rerank")
    arrays = [golden[name] for name in ("query", "gallery", "query_cameras", "gallery_cameras")]
    weight = float(golden["lambda_value"])
    blocks = camera_reranked_blocks(*arrays, distance_weight=weight, chunk_size=chunk_size, **numbers(golden))
    distances = torch.cat(list(blocks)).numpy()
    assert distances.shape == golden["distance"].shape
    stable = np.ix_(golden["stable_query"], golden["stable_gallery"])
    np.testing.assert_allclose(distances[stable], golden["distance"][stable], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("k1_intra must be an integer of at least 1", {"k1_intra": 0}),
        ("k2_inter must be an integer of at least 0", {"k2_inter": -1}),
        ("averages nothing", {"k2_intra": 0, "k2_inter": 0}),
        ("21 neighbours need as many images, got 20", {}),
        (r"max_distance must lie in \(0, 1\]", {"k1_inter": 3, "max_distance": 0}),
        (r"cameras must be \(20,\) integers", {"k1_inter": 3, "cameras": np.zeros(19, int)}),
        (r"cameras must be \(20,\) integers", {"k1_inter": 3, "cameras": np.zeros(20)}),
        ("all zeros in a row", {"k1_inter": 3, "features": np.zeros((20, 4), np.float32)}),
    ],
)
def test_says_what_is_wrong(message, change):
    arguments = {"features": np.random.default_rng(0).normal(size=(20, 4)), "cameras": np.zeros(20, int)}
    with pytest.raises(ValueError, match=message):
        camera_jaccard_graph(**arguments | change)
