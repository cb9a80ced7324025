"""k-means with a given number of clusters."""

from __future__ import annotations

import faiss
import numpy as np
import torch
from fastreid.config import CfgNode
from torch import Tensor

from ..core import ImageTable
from .base import CLUSTERER_REGISTRY, Clusterer


@CLUSTERER_REGISTRY.register()
class KMeans(Clusterer):
    """Spherical k-means (faiss): every image gets a label, none is noise. For sets whose number of people is known.

    Args:
        num_clusters: the number of clusters, lowered to one per image. Clusters without an image are dropped.
        seed: of the random start.

    Raises:
        ValueError: ``num_clusters`` is below 1, or features are not finite.
    """

    order_matters = True

    def __init__(self, *, num_clusters: int, seed: int = 0) -> None:
        super().__init__()
        if num_clusters < 1:
            raise ValueError(f"num_clusters must be at least 1, got {num_clusters}")
        self.num_clusters = num_clusters
        self.seed = seed

    @classmethod
    def from_config(cls, cfg: CfgNode) -> KMeans:
        return cls(num_clusters=cfg.CLUSTER.NUM_CLUSTERS, seed=max(cfg.SEED, 0))

    def labels(self, features: Tensor, known: ImageTable) -> Tensor:
        rows = np.ascontiguousarray(features.cpu().numpy(), dtype=np.float32)
        if not np.isfinite(rows).all():
            raise ValueError(
                "features must be finite, got NaN or infinite values; check the network that produced them"
            )
        with self.stage("kmeans"):
            kmeans = faiss.Kmeans(
                rows.shape[1],
                min(self.num_clusters, len(rows)),
                nredo=5,  # the best of several starts
                init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
                seed=self.seed,
                spherical=True,
                min_points_per_centroid=1,
            )
            kmeans.train(rows)
            nearest = kmeans.index.search(rows, 1)[1][:, 0]
        return torch.unique(torch.from_numpy(nearest), return_inverse=True)[1]
