"""The dense counterparts of the sparse graphs, for comparison in small tests."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from sklearn.cluster import DBSCAN


def dense(graph: sparse.csr_array) -> np.ndarray:
    """The full matrix of distances: absent pairs are at distance 1, stored zeros stay 0."""
    matrix = np.ones(graph.shape, graph.dtype)
    entries = graph.tocoo()
    matrix[entries.row, entries.col] = entries.data
    return matrix


def sklearn_labels(distances: np.ndarray, eps: float, min_samples: int) -> np.ndarray:
    """scikit-learn's DBSCAN on the full matrix; matrices without rows, which it refuses, have no labels."""
    if not len(distances):
        return np.empty(0, np.int64)
    return DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit(distances).labels_


def jaccard_by_definition(features: np.ndarray, ranks: np.ndarray, k1: int, k2: int) -> np.ndarray:
    """(N, N) k-reciprocal Jaccard distances in float64, from N x N matrices of set membership."""
    rows = features / np.linalg.norm(features, axis=1, keepdims=True)

    def mutual(k: int) -> np.ndarray:
        listed = np.zeros((len(ranks), len(ranks)), int)
        np.put_along_axis(listed, ranks[:, :k1][:, : k + 1], 1, axis=1)
        return listed * listed.T

    reciprocal, half = mutual(k1), mutual(round(k1 / 2))
    accepted = reciprocal * (3 * (reciprocal @ half.T) > 2 * half.sum(1))
    expanded = reciprocal + accepted @ half > 0
    weights = expanded * np.exp(2 * rows @ rows.T - 2)
    weights /= np.maximum(weights.sum(1, keepdims=True), np.finfo(float).tiny)
    averaged = weights[ranks[:, :k2]].mean(1)
    shared = np.minimum(averaged[:, None], averaged[None]).sum(2)
    return np.maximum(0, 1 - shared / (2 - shared))
