"""The loss with labels refined by neighbours, against a loop over images, neighbours and clusters."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fastreid_ice import InputError
from fastreid_ice.core import Clusters, ImageTable, cluster_proxy_loss
from fastreid_ice.losses import ClusterProxyLoss, NeighborLabelLoss, Step


def unknown(images: int) -> ImageTable:
    return ImageTable(cameras=torch.full((images,), -1))


def epoch(dtype: torch.dtype = torch.float64) -> Clusters:
    torch.manual_seed(0)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, -1, -1, -1])
    return Clusters(labels, F.normalize(torch.randn(12, 6, dtype=dtype)), unknown(12))


def batch(clusters: Clusters, indices: list[int]) -> Step:
    features = 3 * torch.randn(len(indices), 6, dtype=clusters.features.dtype)
    cameras = torch.full((len(indices),), -1)
    return Step(clusters.labels[indices], cameras, torch.tensor(indices), features.requires_grad_())


@pytest.mark.parametrize(("num_neighbors", "share"), [(1, 0.3), (4, 0.3), (4, 1.0), (20, 0.5)])
def test_equals_a_loop(num_neighbors: int, share: float) -> None:
    clusters = epoch()
    loss = NeighborLabelLoss(scale=2.0, temperature=0.4, num_neighbors=num_neighbors, share=share)
    loss.begin_epoch(clusters)
    step = batch(clusters, [0, 3, 6, 7, 8, 1])
    features, labels = clusters.features, clusters.labels
    proxies = torch.stack([features[labels == c].mean(0) for c in range(3)])
    expected = []
    for feature, i in zip(step.online, step.indices.tolist(), strict=True):
        others = sorted((j for j in range(12) if j != i), key=lambda j: -float(features[i] @ features[j]))
        near = [(max(float(features[i] @ features[j]), 0), int(labels[j])) for j in others[:num_neighbors]]
        near = [(weight, label) for weight, label in near if label >= 0 and weight > 0]
        soft = [0.0, 0.0, 0.0]
        for weight, label in near:
            soft[label] += share * weight / sum(weight for weight, _ in near)
        soft[int(labels[i])] += 1 - sum(soft)
        logits = [feature @ proxy / 0.4 for proxy in proxies]
        total = torch.stack(logits).exp().sum().log()
        expected.append(-sum(p * (logit - total) for p, logit in zip(soft, logits, strict=True)))
    expected = 2 * torch.stack(expected).mean()
    found = loss(step)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, step.online)[0] for value in (found, expected)))


def test_without_a_share_it_is_the_cluster_proxy_loss() -> None:
    clusters = epoch()
    step = batch(clusters, [0, 4, 8])
    losses = NeighborLabelLoss(share=0.0), ClusterProxyLoss(label_smoothing=0.0)
    for loss in losses:
        loss.begin_epoch(clusters)
    torch.testing.assert_close(losses[0](step), losses[1](step))


def test_an_image_among_noise_keeps_its_label() -> None:
    features = torch.eye(6)[[0, 0, 1, 1, 1, 2, 2]]  # the first two see only themselves and, far away, the others
    clusters = Clusters(torch.tensor([0, -1, 1, 1, 1, -1, -1]), features, unknown(7))
    loss = NeighborLabelLoss(num_neighbors=1, share=0.9)
    loss.begin_epoch(clusters)
    value = loss(Step(torch.tensor([0]), torch.tensor([-1]), torch.tensor([0]), torch.zeros(1, 6)))
    assert value.item() == pytest.approx(math.log(2))
    assert loss.weights[0].tolist() == [1, 0]


def test_soft_labels_of_a_wrong_shape() -> None:
    with pytest.raises(ValueError, match=r"soft labels must be \(B, C\) = \(4, 3\), got \(4, 2\)"):
        cluster_proxy_loss(torch.randn(4, 6), torch.randn(3, 6), torch.rand(4, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_neighbors": 0}, "NUM_NEIGHBORS 0 must be at least 1"),
        ({"share": 1.5}, r"SHARE 1.5 must lie in \[0, 1\]"),
    ],
)
def test_values_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        NeighborLabelLoss(**options)
