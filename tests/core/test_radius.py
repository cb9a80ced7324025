"""The choice of a radius: against sums over all pairs, on planted people, and if there is nothing to choose."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from dense import dense
from fastreid_ice.core import choose_eps, dbscan, jaccard_graph, k_nearest, label_quality


def people(num_people, shots, noise, seed=0):
    """Unit rows of planted people, and their identities."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(num_people).repeat_interleave(shots)
    centres = torch.randn(num_people, 32, generator=generator)
    return centres[truth] + noise * torch.randn(len(truth), 32, generator=generator), truth.numpy()


def graph_of(features, **keywords):
    return jaccard_graph(features, k_nearest(features, 30)[1], **keywords)


@pytest.mark.parametrize("min_samples", [1, 4])
def test_sweep_equals_sums_over_all_pairs(min_samples):
    graph = graph_of(people(12, 14, 0.9)[0])
    before = graph.copy()
    eps, sweep = choose_eps(graph, min_samples=min_samples)
    chance = (1 - dense(graph).astype(np.float64)) ** 1.25
    np.fill_diagonal(chance, 0)
    for s, radius in enumerate(sweep.eps):
        labels = dbscan(graph, eps=radius, min_samples=min_samples)
        joined = (labels[:, None] == labels) & (labels >= 0)
        np.fill_diagonal(joined, False)
        expected = 2 * chance[joined].sum() / (joined.sum() + chance.sum())
        assert sweep.expected_f[s] == pytest.approx(expected, rel=1e-6)
        sizes = np.bincount(labels[labels >= 0])
        assert (sweep.num_clusters[s], sweep.largest[s]) == (len(sizes), max(sizes, default=0))
        assert sweep.noise_share[s] == pytest.approx((labels < 0).mean())
    assert eps == sweep.eps[sweep.expected_f.argmax()]
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(graph, name), getattr(before, name))


@pytest.mark.parametrize("noise", [0.5, 0.8, 1.0])
@pytest.mark.parametrize(("num_people", "shots"), [(60, 8), (40, 20), (20, 40)])
def test_is_near_the_best_radius(num_people, shots, noise):
    features, truth = people(num_people, shots, noise)
    graph = graph_of(features)
    eps, sweep = choose_eps(graph)

    def agreement(radius):
        return label_quality(dbscan(graph, eps=radius), truth).adjusted_rand_index

    assert agreement(eps) >= 0.9 * max(map(agreement, sweep.eps))


def test_formats_of_the_graph_do_not_matter():
    graph = graph_of(people(12, 14, 0.9)[0])
    eps, sweep = choose_eps(graph)
    for other in (graph.tocoo(), graph.tocsc(), graph.astype(np.float64)):
        found, curve = choose_eps(other)
        assert found == eps
        np.testing.assert_allclose(curve.expected_f, sweep.expected_f, rtol=1e-5)


@pytest.mark.parametrize("graph", [sparse.csr_array((0, 0)), sparse.csr_array((9, 9))])
def test_without_pairs_all_radii_are_equal(graph):
    eps, sweep = choose_eps(graph)
    assert eps == sweep.eps[0]
    assert not sweep.expected_f.any()
    assert not sweep.num_clusters.any()


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match="square scipy sparse matrix"):
        choose_eps(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="min_samples must be"):
        choose_eps(sparse.csr_array((9, 9)), min_samples=0)
