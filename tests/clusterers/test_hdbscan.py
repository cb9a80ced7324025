"""HDBSCAN on the sparse graph against scikit-learn on the dense matrix."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import sklearn.cluster
import torch
from scipy import sparse
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from dense import dense
from fastreid_ice.clusterers import HDBSCAN, build_clusterer
from fastreid_ice.clusterers.hdbscan import hdbscan
from fastreid_ice.core import ImageTable, jaccard_graph, k_nearest
from golden import load_golden
from support import small_config


def on_the_dense_matrix(graph: sparse.csr_array, min_cluster_size: int, min_samples: int) -> np.ndarray:
    distances = dense(graph).astype(np.float64).clip(np.finfo(np.float32).eps)
    model = sklearn.cluster.HDBSCAN(
        min_cluster_size=min_cluster_size, min_samples=min_samples, metric="precomputed", copy=True
    )
    return model.fit(distances).labels_


def assert_same_clusters(labels: np.ndarray, expected: np.ndarray) -> None:
    """Up to the numbers of the clusters; the noise is the same."""
    pairs = set(zip(labels.tolist(), expected.tolist(), strict=True))
    assert len(pairs) == len(set(labels.tolist())) == len(set(expected.tolist()))
    assert all((one == -1) == (other == -1) for one, other in pairs)


def people(sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Features and identities of well-separated people."""
    generator = torch.Generator().manual_seed(7)
    identities = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    features = torch.randn(len(sizes), 64, generator=generator)[identities]
    return features + 0.2 * torch.randn(len(identities), 64, generator=generator), identities


@pytest.mark.parametrize("min_samples", [1, 2])
@pytest.mark.parametrize("name", ["k30", "k20", "k15", "dup"])
def test_equals_the_dense_matrix(name: str, min_samples: int) -> None:
    golden = load_golden(f"jaccard_{name}")
    graph = jaccard_graph(golden["features"], golden["initial_rank"], k1=int(golden["k1"]), k2=int(golden["k2"]))
    before = graph.copy()
    labels = hdbscan(graph, min_cluster_size=4, min_samples=min_samples)
    assert labels.max() > 10
    assert_same_clusters(labels, on_the_dense_matrix(graph, 4, min_samples))
    np.testing.assert_array_equal(graph.data, before.data)


@pytest.mark.parametrize("name", ["k30", "k20", "k15", "dup"])
def test_with_more_samples_as_near_to_the_dense_matrix_as_other_orders_of_the_images(name: str) -> None:
    golden = load_golden(f"jaccard_{name}")
    graph = jaccard_graph(golden["features"], golden["initial_rank"], k1=int(golden["k1"]), k2=int(golden["k2"]))
    expected = on_the_dense_matrix(graph, 4, 4)
    orders = [np.random.default_rng(seed).permutation(len(expected)) for seed in range(10)]
    others = [on_the_dense_matrix(graph[order][:, order], 4, 4)[order.argsort()] for order in orders]
    labels = hdbscan(graph, min_cluster_size=4, min_samples=4)
    assert adjusted_rand_score(labels, expected) >= min(adjusted_rand_score(other, expected) for other in others)


@pytest.mark.parametrize("min_samples", [1, 2, 4, 6])
def test_a_graph_in_pieces(min_samples: int) -> None:
    """Unconnected pieces are separate clusters if they are large enough, in any order."""
    random = np.random.default_rng(2)
    sizes = random.permutation([12, 9, 8, 10, 7, 3, 3, 3, 2, 2, 1, 1, 1, 1, 5, 6])
    blocks = []
    for size in sizes:
        block = random.uniform(0.4, 0.5, (size, size)).astype(np.float32)
        blocks.append(np.minimum(block, block.T))
        np.fill_diagonal(blocks[-1], 1e-7)
    graph = sparse.csr_array(sparse.block_diag(blocks))
    labels = hdbscan(graph, min_cluster_size=7, min_samples=min_samples)
    pieces = [set(part) for part in np.split(labels, sizes.cumsum()[:-1])]
    assert all(piece == {-1} for piece, size in zip(pieces, sizes, strict=True) if size < 7)
    large = [piece - {-1} for piece, size in zip(pieces, sizes, strict=True) if size >= 7]
    assert sorted(label for piece in large for label in piece) == [0, 1, 2, 3, 4]


def test_an_image_with_too_few_neighbors_is_noise() -> None:
    """It has two near neighbours; min_samples 4 needs three besides itself, which only distance 1 gives: all images."""
    distances = np.ones((21, 21))
    distances[:10, :10] = distances[10:20, 10:20] = 0.4
    distances[20, [2, 3]] = distances[[2, 3], 20] = 0.4
    np.fill_diagonal(distances, 0)
    rows, columns = np.nonzero(distances < 1)
    graph = sparse.csr_array((distances[rows, columns], (rows, columns)), shape=distances.shape)
    assert hdbscan(graph, min_cluster_size=4, min_samples=4)[20] == -1
    labels = hdbscan(graph, min_cluster_size=4, min_samples=3)
    assert labels[20] == labels[2] >= 0


def test_finds_clear_people() -> None:
    features, identities = people([12, 30, 18, 20])
    clusterer = HDBSCAN(k1=10)
    clusters = clusterer(features, ImageTable(torch.zeros_like(identities)))
    assert_same_clusters(clusters.labels.numpy(), identities.numpy())
    assert set(clusterer.seconds) == {"neighbors", "jaccard", "hdbscan"}


def test_copies_are_at_distance_0_and_one_cluster() -> None:
    """The spanning tree of a sparse matrix has no edges of length 0, unless they are lengthened."""
    features, identities = people([1] * 6)
    features, identities = features.repeat_interleave(10, dim=0), identities.repeat_interleave(10)
    _, ranks = k_nearest(features, 10)
    labels = hdbscan(jaccard_graph(features, ranks, k1=10, k2=3), min_cluster_size=4, min_samples=4)
    assert_same_clusters(labels, identities.numpy())


@pytest.mark.parametrize("images", [1, 2, 3, 5])
def test_what_cannot_be_split_is_noise(images: int) -> None:
    features, identities = people([images])
    clusters = HDBSCAN()(features, ImageTable(identities=identities))
    assert clusters.num_noise == images


def test_memory_does_not_grow_with_the_square() -> None:
    num_points, group = 10_000, 20
    block = np.full((group, group), 0.4, np.float32)
    graph = sparse.csr_array(sparse.kron(sparse.eye_array(num_points // group), block))
    tracemalloc.start()
    try:
        labels = hdbscan(graph, min_cluster_size=4, min_samples=4)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert_same_clusters(labels, np.arange(num_points) // group)
    assert peak < num_points**2  # not even a byte for every pair


def test_build_from_config() -> None:
    clusterer = build_clusterer(
        small_config(CLUSTER__NAME="HDBSCAN", CLUSTER__MIN_CLUSTER_SIZE=7, CLUSTER__MIN_SAMPLES=3)
    )
    assert isinstance(clusterer, HDBSCAN)
    assert (clusterer.min_cluster_size, clusterer.min_samples, clusterer.k1) == (7, 3, 6)
