"""The four losses of ICE (Chen, Lagadec, Bremond, ICCV 2021), each with the memory that it needs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..core import (
    Clusters,
    camera_centroids,
    centroids,
    cluster_proxy_loss,
    cross_camera_loss,
    hard_instance_loss,
    soft_consistency_loss,
)
from ..errors import InputError
from .base import LOSS_REGISTRY, LossTerm, Step


@LOSS_REGISTRY.register()
class ClusterProxyLoss(LossTerm):
    """Camera-agnostic proxies: cross-entropy of raw features against the cluster means, fixed within an epoch."""

    views = frozenset({"online"})
    node = "CLUSTER_PROXY"

    def __init__(self, *, scale: float = 1.0, temperature: float = 0.5, label_smoothing: float = 0.1) -> None:
        super().__init__(scale=scale)
        self.temperature = temperature
        self.label_smoothing = label_smoothing

    def begin_epoch(self, clusters: Clusters) -> None:
        self.remember("proxies", centroids(clusters.features, clusters.labels))

    def forward(self, step: Step) -> Tensor:
        loss = cluster_proxy_loss(
            step.online, self.proxies, step.labels, temperature=self.temperature, label_smoothing=self.label_smoothing
        )
        return self.scale * loss


@LOSS_REGISTRY.register()
class CrossCameraLoss(LossTerm):
    """Camera-aware proxies: pulls an image towards its cluster's proxies, and away from similar proxies of others.

    Args:
        proxy_norm: "row" for unit proxies, "coordinate" for the published code's norm over all proxies.
        positives: "other_cameras", or "all" to count the proxy of the image's own camera as well.
    """

    views = frozenset({"online"})
    node = "CROSS_CAMERA"
    needs_cameras = True

    def __init__(
        self,
        *,
        scale: float = 0.5,
        temperature: float = 0.07,
        num_negatives: int = 50,
        proxy_norm: str = "row",
        positives: str = "other_cameras",
    ) -> None:
        super().__init__(scale=scale)
        if proxy_norm not in ("row", "coordinate"):
            raise InputError(f"PROXY_NORM {proxy_norm!r} must be 'row' or 'coordinate'")
        if positives not in ("other_cameras", "all"):
            raise InputError(f"POSITIVES {positives!r} must be 'other_cameras' or 'all'")
        self.temperature = temperature
        self.num_negatives = num_negatives
        self.proxy_norm = proxy_norm
        self.positives = positives

    def begin_epoch(self, clusters: Clusters) -> None:
        proxies, labels, cameras = camera_centroids(clusters.features, clusters.labels, clusters.cameras)
        if self.proxy_norm == "coordinate":
            proxies = F.normalize(proxies, dim=0)
        self.remember("proxies", proxies)
        self.remember("proxy_labels", labels)
        self.remember("proxy_cameras", cameras)

    def forward(self, step: Step) -> Tensor:
        loss = cross_camera_loss(
            step.online,
            step.labels,
            step.cameras,
            self.proxies,
            self.proxy_labels,
            temperature=self.temperature,
            num_negatives=self.num_negatives,
            proxy_cameras=self.proxy_cameras if self.positives == "other_cameras" else None,
        )
        return self.scale * loss


@LOSS_REGISTRY.register()
class HardInstanceLoss(LossTerm):
    """Hard instance contrast: the positive of an image is the least similar momentum feature of its pseudo identity."""

    views = frozenset({"online", "momentum"})
    node = "HARD_INSTANCE"

    def __init__(self, *, scale: float = 1.0, temperature: float = 0.1) -> None:
        super().__init__(scale=scale)
        self.temperature = temperature

    def forward(self, step: Step) -> Tensor:
        return self.scale * hard_instance_loss(step.online, step.momentum, step.labels, temperature=self.temperature)


@LOSS_REGISTRY.register()
class SoftConsistencyLoss(LossTerm):
    """Soft instance consistency: similarities between strong views shall match those between weak views."""

    views = frozenset({"online", "momentum", "momentum_weak"})
    node = "SOFT_CONSISTENCY"

    def __init__(self, *, scale: float = 10.0, temperature: float = 0.4) -> None:
        super().__init__(scale=scale)
        self.temperature = temperature

    def forward(self, step: Step) -> Tensor:
        loss = soft_consistency_loss(step.online, step.momentum, step.momentum_weak, temperature=self.temperature)
        return self.scale * loss
