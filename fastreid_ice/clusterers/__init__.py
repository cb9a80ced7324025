"""Clusterers: features of the training set in, pseudo labels out."""

from .build import CLUSTERER_REGISTRY, Clusterer, build_clusterer
from .ground_truth import GroundTruth
from .jaccard_dbscan import JaccardDBSCAN
from .kmeans import KMeans

__all__ = ["CLUSTERER_REGISTRY", "Clusterer", "GroundTruth", "JaccardDBSCAN", "KMeans", "build_clusterer"]
