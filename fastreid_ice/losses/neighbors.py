"""Soft pseudo labels: the label of an image is refined by those of its nearest neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import Clusters, centroids, cluster_proxy_loss, k_nearest
from ..errors import InputError
from .base import LOSS_REGISTRY, LossTerm, Step


@LOSS_REGISTRY.register()
class NeighborLabelLoss(LossTerm):
    """Cross-entropy of raw features against the cluster means, with soft labels that are fixed within an epoch.

    A soft label is the image's pseudo label, with weight ``1 - share``, and those of its nearest neighbours, with
    weights in proportion to their similarities. This is the label refinement of NCPLR (Cheng et al., "Neighbour
    Consistency Guided Pseudo-Label Refinement for Unsupervised Person Re-Identification", 2022) without its parts, and
    with the labels of neighbours in place of the network's predictions for them. The paper's constants do not carry
    over; the defaults are this project's.

    Args:
        num_neighbors: neighbours of each image; those that are noise do not count.
        share: weight of all neighbours together, in [0, 1].

    Raises:
        InputError: for a value out of range.
    """

    views = frozenset({"online"})
    node = "NEIGHBOR_LABEL"

    def __init__(
        self, *, scale: float = 1.0, temperature: float = 0.5, num_neighbors: int = 10, share: float = 0.3
    ) -> None:
        super().__init__(scale=scale)
        if num_neighbors < 1:
            raise InputError(f"NUM_NEIGHBORS {num_neighbors} must be at least 1")
        if not 0 <= share <= 1:
            raise InputError(f"SHARE {share} must lie in [0, 1]")
        self.temperature = temperature
        self.num_neighbors = num_neighbors
        self.share = share

    def begin_epoch(self, clusters: Clusters) -> None:
        self.remember("proxies", centroids(clusters.features, clusters.labels))
        similarities, ranks = k_nearest(clusters.features, min(self.num_neighbors + 1, len(clusters.features)))
        labels = clusters.labels[ranks]
        weights = similarities.clamp(min=0) * (labels >= 0)
        weights[:, 0] = 0  # the image itself
        weights *= self.share / weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        weights[:, 0] = 1 - weights.sum(1)
        self.remember("soft_labels", labels.clamp(min=0))
        self.remember("weights", weights)

    def forward(self, step: Step) -> Tensor:
        soft = step.online.new_zeros(len(step.labels), len(self.proxies))
        soft.scatter_add_(1, self.soft_labels[step.indices], self.weights[step.indices].to(soft.dtype))
        return self.scale * cluster_proxy_loss(
            step.online, self.proxies, soft, temperature=self.temperature, label_smoothing=0
        )
