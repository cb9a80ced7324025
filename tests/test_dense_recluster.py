"""The dense oracle against the reference's arrays, and the package's labels against the oracle's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dense_recluster import cosine_similarity, dense_recluster, jaccard, nearest
from fastreid_ice.core import dbscan, jaccard_graph, k_nearest
from golden import load_golden


@pytest.mark.parametrize("name", ["k30", "k25_round", "k20_k2one", "dup", "dupblock_k2one"])
def test_the_oracle_equals_the_reference(name: str) -> None:
    golden = load_golden(f"jaccard_{name}")
    features, k2 = torch.tensor(golden["features"]), int(golden["k2"])
    similarity = cosine_similarity(features)
    if golden["rank_gap"] > 0:
        np.testing.assert_array_equal(nearest(similarity, int(golden["k1"])), golden["initial_rank"])
    found = jaccard(similarity, torch.tensor(golden["initial_rank"]), k2=k2)
    np.testing.assert_allclose(found, golden["jaccard"], rtol=0, atol=3e-6)


def test_equal_similarities_are_ranked_by_index_after_the_image_itself() -> None:
    similarity = cosine_similarity(torch.eye(3)[[0, 0, 1, 0, 2]].double())
    assert nearest(similarity, 4).tolist() == [[0, 1, 3, 2], [1, 0, 3, 2], [2, 0, 1, 3], [3, 0, 1, 2], [4, 0, 1, 2]]


@pytest.mark.parametrize("eps", [0.45, 0.6])
@pytest.mark.parametrize(("k1", "k2"), [(30, 6), (20, 1), (15, 3), (4, 2)])
def test_our_labels_are_the_oracles(k1: int, k2: int, eps: float) -> None:
    """People of 2 to 24 images, from easy to hopeless, copies among them."""
    generator = torch.Generator().manual_seed(k1)
    people = torch.arange(60).repeat_interleave(torch.arange(60) % 23 + 2)
    difficulty = torch.linspace(0.2, 2, 60)[people, None]
    centres = torch.randn(60, 24, generator=generator)
    features = centres[people] + difficulty * torch.randn(len(people), 24, generator=generator)
    features[1::150] = features[::150][: len(features[1::150])]
    features = F.normalize(features)[torch.randperm(len(people), generator=generator)]
    _, ranks = k_nearest(features, k1)
    labels = dbscan(jaccard_graph(features, ranks, k1=k1, k2=k2, max_distance=eps), eps=eps)
    assert labels.max() > 10 and (labels < 0).any()
    np.testing.assert_array_equal(labels, dense_recluster(features, k1=k1, k2=k2, eps=eps))
