"""Clusterers: from features of the training set to pseudo labels."""

from .base import CLUSTERER_REGISTRY, Clusterer, build_clusterer, centroid_offsets
from .ground_truth import GroundTruth
from .hdbscan import HDBSCAN
from .jaccard_dbscan import JaccardClusterer, JaccardDBSCAN, check_tracks
from .kmeans import KMeans

__all__ = [
    "CLUSTERER_REGISTRY",
    "HDBSCAN",
    "Clusterer",
    "GroundTruth",
    "JaccardClusterer",
    "JaccardDBSCAN",
    "KMeans",
    "build_clusterer",
    "centroid_offsets",
    "check_tracks",
]
