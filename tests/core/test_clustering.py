"""DBSCAN on sparse graphs against scikit-learn on the dense matrix, and the validity of a clustering."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import sparse

from dense import sklearn_labels
from fastreid_ice.core import Clusters, ImageTable, dbscan, jaccard_graph
from golden import load_golden


def sparsify(distances: np.ndarray) -> sparse.csr_array:
    """Keep the distances below 1, zeros included."""
    rows, columns = np.nonzero(distances < 1)
    return sparse.csr_array((distances[rows, columns], (rows, columns)), shape=distances.shape)


@pytest.mark.parametrize("name", ["k30", "k20", "k15", "k20_k2one", "k25_round", "dup", "dupblock", "dupblock_k2one"])
def test_equals_the_reference_for_every_eps(name):
    golden = load_golden(f"jaccard_{name}")
    k1, k2, min_samples = (int(golden[key]) for key in ("k1", "k2", "min_samples"))
    stored = sparsify(golden["jaccard"])
    own = jaccard_graph(golden["features"], golden["initial_rank"], k1=k1, k2=k2)
    for eps, margin, expected in zip(golden["eps"], golden["dbscan_margin"], golden["dbscan_labels"], strict=True):
        np.testing.assert_array_equal(dbscan(stored, eps=eps, min_samples=min_samples), expected)
        if margin > 5e-6:  # otherwise a pair lies at eps up to rounding
            np.testing.assert_array_equal(dbscan(own, eps=eps, min_samples=min_samples), expected)
            near = jaccard_graph(golden["features"], golden["initial_rank"], k1=k1, k2=k2, max_distance=eps)
            np.testing.assert_array_equal(dbscan(near, eps=eps, min_samples=min_samples), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_equals_scikit_learn_on_random_graphs(seed, symmetric, dtype):
    """Many ties at eps, border points between clusters, points not near themselves, one-way neighbours."""
    random = np.random.default_rng(seed)
    distances = random.choice([0, 0.2, 0.4, 0.5, 1.0], p=[0.01, 0.02, 0.02, 0.02, 0.93], size=(150, 150)).astype(dtype)
    if symmetric:
        distances = np.minimum(distances, distances.T)
    np.fill_diagonal(distances, random.choice([0, 1e-6, 1.0], size=150))
    graph = sparsify(distances)
    before = graph.copy()
    for eps in (0.2, 0.4, 0.45, 0.5):
        for min_samples in (1, 3, 4, 6):
            labels = dbscan(graph, eps=eps, min_samples=min_samples)
            assert labels.dtype == np.int64
            np.testing.assert_array_equal(labels, sklearn_labels(distances, eps, min_samples))
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(graph, name), getattr(before, name))


def test_a_border_point_goes_to_the_first_cluster_and_may_leave_the_second_small():
    # Cores 0 and 4, both near 3: the second cluster keeps 3 of its 4 points.
    distances = np.ones((7, 7))
    for core, others in ((0, (1, 2, 3)), (4, (3, 5, 6))):
        distances[core, others] = distances[others, core] = 0.3
    np.fill_diagonal(distances, 0)
    labels = dbscan(sparsify(distances), eps=0.5, min_samples=4)
    np.testing.assert_array_equal(labels, [0, 0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize("form", ["csr_array", "csc_array", "coo_array", "csr_matrix"])
def test_every_sparse_format_with_stored_zeros(form):
    distances = np.ones((12, 12))
    distances[:5, :5] = 0
    distances[5:9, 5:9] = 0.3
    graph = getattr(sparse, form)(sparsify(distances))
    np.testing.assert_array_equal(dbscan(graph, eps=0.5), [0] * 5 + [1] * 4 + [-1] * 3)


def test_empty_graphs():
    assert dbscan(sparse.csr_array((0, 0)), eps=0.5).shape == (0,)
    np.testing.assert_array_equal(dbscan(sparse.csr_array((3, 3)), eps=0.5, min_samples=1), [-1, -1, -1])


def test_a_large_graph_at_eps_1_costs_nothing():
    """Absent pairs are at distance 1, hence near: these are 10^11 here, and must not be stored."""
    num_points = 400_000
    graph = sparse.csr_array((num_points, num_points), dtype=np.float32)
    np.testing.assert_array_equal(dbscan(graph, eps=1, min_samples=num_points), np.zeros(num_points))
    np.testing.assert_array_equal(dbscan(graph, eps=1, min_samples=num_points + 1), np.full(num_points, -1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_eps_is_compared_in_the_precision_of_the_graph(dtype):
    """0.55 is less than its float32 value, and 1 - 1e-9 becomes 1 in float32, which makes absent pairs near."""
    distances = np.ones((4, 4), dtype)
    np.fill_diagonal(distances, 0)
    distances[0, 1] = distances[1, 0] = 0.55
    graph = sparsify(distances)
    for eps, expected in ((0.55, [0, 0, 1, 2]), (1 - 1e-9, [0] * 4 if dtype == np.float32 else [0, 0, 1, 2])):
        np.testing.assert_array_equal(dbscan(graph, eps=eps, min_samples=1), expected)
        np.testing.assert_array_equal(sklearn_labels(distances, eps, 1), expected)


def test_entries_given_twice_are_summed_as_scipy_does():
    graph = sparse.csr_array((np.array([0.0, 0.2, 0.2, 0.2, 0.2]), [0, 1, 1, 0, 0], [0, 3, 5]), shape=(2, 2))
    before = graph.data.copy()
    np.testing.assert_array_equal(dbscan(graph, eps=0.3, min_samples=1), [0, -1])
    np.testing.assert_array_equal(dbscan(graph, eps=0.4, min_samples=1), [0, 0])
    np.testing.assert_array_equal(graph.data, before)


EMPTY = sparse.csr_array((3, 3))


@pytest.mark.parametrize(
    ("graph", "arguments", "message"),
    [
        (EMPTY, {"eps": 0.0}, r"eps must lie in \(0, 1\], as the distances do, got 0.0"),
        (EMPTY, {"eps": -0.5}, r"eps must lie in \(0, 1\], as the distances do, got -0.5"),
        (EMPTY, {"eps": 1.0001}, r"eps must lie in \(0, 1\], as the distances do, got 1.0001"),
        (EMPTY, {"eps": np.nan}, r"eps must lie in \(0, 1\], as the distances do, got nan"),
        (EMPTY, {"eps": "0.5"}, r"eps must lie in \(0, 1\], as the distances do, got '0.5'"),
        (EMPTY, {"eps": 0.5, "min_samples": 0}, "min_samples must be an integer of at least 1, got 0"),
        (EMPTY, {"eps": 0.5, "min_samples": 2.5}, "min_samples must be an integer of at least 1, got 2.5"),
        (sparse.csr_array((3, 4)), {"eps": 0.5}, "graph must be a square scipy sparse matrix"),
        (np.ones((3, 3)), {"eps": 0.5}, "graph must be a square scipy sparse matrix"),
        (EMPTY.astype(bool), {"eps": 0.5}, "graph must hold floating point distances, got bool"),
        (sparse.csr_array([[0, -0.1], [-0.1, 0]]), {"eps": 0.5}, r"distances in \[0, 1\], got values from -0.1"),
        (sparse.csr_array([[0, 1.1], [1.1, 0]]), {"eps": 0.5}, r"distances in \[0, 1\], got values from 1.1 to 1.1"),
        (sparse.csr_array([[0, np.nan], [0.2, 0]]), {"eps": 0.5}, r"distances in \[0, 1\], got values from nan"),
    ],
)
def test_bad_input_is_named(graph, arguments, message):
    with pytest.raises(ValueError, match=message):
        dbscan(graph, **arguments)


def make_clusters(labels, /, **changes):
    fields = {
        "labels": torch.tensor(labels, dtype=torch.int64),
        "features": torch.eye(max(len(labels), 1))[: len(labels)],
        "known": ImageTable(torch.zeros(len(labels), dtype=torch.int64)),
    }
    return Clusters(**(fields | changes))


@pytest.mark.parametrize(
    ("labels", "sizes", "noise"), [([1, -1, 0, 1], [1, 2], 1), ([-1, -1], [], 2), ([0, 0, 0], [3], 0), ([], [], 0)]
)
def test_clusters_count(labels, sizes, noise):
    clusters = make_clusters(labels)
    assert clusters.sizes.tolist() == sizes
    assert clusters.num_clusters == len(sizes)
    assert clusters.num_noise == noise
    assert clusters.noise_share == (noise / len(labels) if labels else 0)


def test_clusters_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_clusters([0, 1]).labels = torch.zeros(2)


@pytest.mark.parametrize(
    ("labels", "changes", "message"),
    [
        ([0, 2], {}, r"labels must be -1 for noise and 0, 1, ... without gaps"),
        ([0, -2], {}, r"labels must be -1 for noise and 0, 1, ... without gaps"),
        ([0, 1], {"features": torch.ones(3, 2)}, r"features must have 2 dimension\(s\) and a row for each of the 2"),
        ([0, 1], {"features": torch.ones(2)}, r"features must have 2 dimension\(s\)"),
        ([0, 1], {"known": ImageTable(torch.zeros(3, dtype=torch.int64))}, "known must have a row for each of the 2"),
        ([0, 1], {"labels": torch.zeros(2)}, "labels must be int64, got torch.float32"),
        ([0, 1], {"features": torch.ones(2, 2, dtype=torch.int64)}, "features must be floating point"),
        ([0, 1], {"momentum_features": torch.ones(3, 2)}, r"momentum_features must have 2 dimension\(s\)"),
    ],
)
def test_invalid_clusters_are_named(labels, changes, message):
    with pytest.raises(ValueError, match=message):
        make_clusters(labels, **changes)
