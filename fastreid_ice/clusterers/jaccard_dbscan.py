"""DBSCAN on k-reciprocal Jaccard distances."""

from __future__ import annotations

import logging
from functools import partial

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.utils import comm
from torch import Tensor

from ..core import dbscan, jaccard_graph, k_nearest
from ..core.shard import Shard
from ..progress import progress
from .build import CLUSTERER_REGISTRY, Clusterer

logger = logging.getLogger(f"fastreid.{__name__}")
_searching = partial(progress, title="Searching neighbors")


@CLUSTERER_REGISTRY.register()
class JaccardDBSCAN(Clusterer):
    """DBSCAN on the sparse k-reciprocal Jaccard graph, the clustering of ICE, DCMIP and their family.

    Memory grows with N * K1, never with N * N. Several processes each search for and compare their share of the images;
    the labels are those of one process.

    Args:
        eps: radius in (0, 1].
        min_samples: images within ``eps``, itself included, that make an image a core image.
        k1: neighbours in the k-reciprocal sets (lowered, with a log line, where the set has fewer images).
        k2: neighbours averaged in the query expansion.
        device: where neighbours are searched.
    """

    shared = True

    def __init__(self, *, eps: float, min_samples: int = 4, k1: int = 30, k2: int = 6, device: str = "cpu") -> None:
        super().__init__()
        self.eps = eps
        self.min_samples = min_samples
        self.k1 = k1
        self.k2 = k2
        self.device = torch.device(device)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> JaccardDBSCAN:
        node = cfg.CLUSTER
        return cls(eps=node.EPS, min_samples=node.MIN_SAMPLES, k1=node.K1, k2=node.K2, device=cfg.MODEL.DEVICE)

    def labels(self, features: Tensor, identities: Tensor) -> Tensor | None:
        k1 = min(self.k1, len(features) - 1)
        if k1 < 2:
            return torch.full((len(features),), -1)
        if k1 < self.k1:
            logger.warning("CLUSTER.K1 %d exceeds what %d images can have; using %d", self.k1, len(features), k1)
        shard = this_shard()
        with self.stage("neighbors"):
            queries = shard.rows(len(features))
            watch = _searching if comm.is_main_process() else iter
            _, ranks = k_nearest(features, k1, device=self.device, queries=queries, progress=watch)
            ranks = np.concatenate(shard.gather(ranks.cpu().numpy().astype(np.int32)))
        with self.stage("jaccard"):
            graph = jaccard_graph(features, ranks, k1=k1, k2=min(self.k2, k1), max_distance=self.eps, shard=shard)
        if not comm.is_main_process():
            return None
        with self.stage("dbscan"):
            return torch.as_tensor(dbscan(graph, eps=self.eps, min_samples=self.min_samples))


def this_shard() -> Shard:
    """The place of this process among those of the run. With NCCL they exchange arrays over fast-reid's gloo group."""
    return Shard.of(comm._get_global_gloo_group()) if comm.get_world_size() > 1 else Shard()
