"""The mathematics: functions from tensors and arrays to tensors and arrays. It does not import fast-reid."""

from __future__ import annotations

from .camera_jaccard import camera_jaccard_graph, camera_reranked_blocks
from .clustering import Clusters, dbscan
from .constraints import Constraints, Enforced, constrain_graph, enforce_constraints, track_constraints
from .corrections import combine_constraints, correction_constraints
from .functional import (
    cluster_proxy_loss,
    cross_camera_loss,
    discrepant_proxy_loss,
    hard_instance_loss,
    multi_instance_loss,
    online_proxy_loss,
    soft_consistency_loss,
)
from .images import ImageTable
from .jaccard import choose_k1, jaccard_graph
from .momentum import update_momentum
from .neighbors import k_nearest
from .proxies import (
    camera_centroids,
    centroids,
    draw_batch_instances,
    draw_instances,
    update_each,
    update_hardest,
    update_mean,
)
from .quality import LabelQuality, churn, label_quality
from .questions import doubtful_pairs
from .radius import EpsSweep, choose_eps
from .retrieval import RankMetrics, rank_metrics
from .standardize import CameraStatistics, standardize_by_camera

__all__ = [
    "CameraStatistics",
    "Clusters",
    "Constraints",
    "Enforced",
    "EpsSweep",
    "ImageTable",
    "LabelQuality",
    "RankMetrics",
    "camera_centroids",
    "camera_jaccard_graph",
    "camera_reranked_blocks",
    "centroids",
    "choose_eps",
    "choose_k1",
    "churn",
    "cluster_proxy_loss",
    "combine_constraints",
    "constrain_graph",
    "correction_constraints",
    "cross_camera_loss",
    "dbscan",
    "discrepant_proxy_loss",
    "doubtful_pairs",
    "draw_batch_instances",
    "draw_instances",
    "enforce_constraints",
    "hard_instance_loss",
    "jaccard_graph",
    "k_nearest",
    "label_quality",
    "multi_instance_loss",
    "online_proxy_loss",
    "rank_metrics",
    "soft_consistency_loss",
    "standardize_by_camera",
    "track_constraints",
    "update_each",
    "update_hardest",
    "update_mean",
    "update_momentum",
]
