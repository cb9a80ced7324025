"""Pseudo labels: DBSCAN on a sparse distance graph, and the result of a clustering."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real

import numpy as np
import torch
from numba import njit
from scipy import sparse
from torch import Tensor

from .images import ImageTable


@dataclass(frozen=True, eq=False)
class Clusters:
    """One epoch's clustering of N images, from which the losses and the training loader are built.

    Attributes:
        labels: (N,) int64 tensor, cluster of each image in 0..C-1 without gaps, or -1 for noise.
        features: (N, D) floating point tensor of unit rows, the features that were clustered.
        known: what is known of each image, without identities, which a method must not see.
        momentum_features: (N, D) like ``features``, those of the momentum encoder if the online encoder's features were
            clustered and a loss needs both, else None.

    Raises:
        ValueError: for shapes or types that differ from these, and labels with gaps.
    """

    labels: Tensor
    features: Tensor
    known: ImageTable
    momentum_features: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "known", self.known.without_identities())
        if len(self.known) != len(self.labels):
            raise ValueError(f"known must have a row for each of the {len(self.labels)} labels, got {len(self.known)}")
        for name, dim in (("labels", 1), ("features", 2), ("momentum_features", 2)):
            value = getattr(self, name)
            if value is None and name == "momentum_features":
                continue
            if value.dim() != dim or len(value) != len(self.labels):
                raise ValueError(
                    f"{name} must have {dim} dimension(s) and a row for each of the {len(self.labels)} labels, "
                    f"got shape {tuple(value.shape)}"
                )
            if (value.dtype != torch.int64) if dim == 1 else not value.is_floating_point():
                raise ValueError(f"{name} must be {'int64' if dim == 1 else 'floating point'}, got {value.dtype}")
        if self.labels.numel() and (int(self.labels.min()) < -1 or not self.sizes.all()):
            raise ValueError("labels must be -1 for noise and 0, 1, ... without gaps for clusters")

    @property
    def cameras(self) -> Tensor:
        """(N,) int64, camera of each image, -1 where not known."""
        return self.known.cameras

    @cached_property
    def sizes(self) -> Tensor:
        """(C,) int64, number of images in each cluster."""
        return torch.bincount(self.labels[self.labels >= 0])

    @property
    def num_clusters(self) -> int:
        return len(self.sizes)

    @property
    def num_noise(self) -> int:
        return int((self.labels < 0).sum())

    @property
    def noise_share(self) -> float:
        """Share of images that belong to no cluster, in [0, 1]; 0 without images."""
        return self.num_noise / max(len(self.labels), 1)


def dbscan(graph: sparse.csr_array, *, eps: float, min_samples: int = 4) -> np.ndarray:
    """Cluster a sparse distance graph by density: DBSCAN (Ester et al., KDD 1996).

    The labels are those of ``sklearn.cluster.DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed")`` on the
    dense matrix with 1 in place of absent pairs. Clusters are numbered by their first core point. A border point of
    several clusters belongs to the first of them, so a cluster may have fewer than ``min_samples`` members.

    Args:
        graph: (N, N) scipy sparse matrix of distances in [0, 1], in any format. Zeros are stored explicitly, and the
            diagonal like any other entry. Duplicate entries are summed, as in scipy. The matrix need not be symmetric:
            row i holds the distances from i.
        eps: largest distance between neighbours, in (0, 1]; compared in the precision of the graph. A pair at exactly
            ``eps`` is near. At 1 absent pairs are near too: all points are one cluster, or noise if there are fewer
            than ``min_samples``.
        min_samples: number of neighbours that make a core point, at least 1; the point itself counts if its diagonal
            entry is within ``eps``.

    Returns:
        (N,) int64 labels, -1 for noise.

    Raises:
        ValueError: for a graph that is not sparse, square and of distances in [0, 1], or a parameter out of range.

    Time and memory are linear in the stored entries and N: a point is put on the stack at most once, when it is
    labelled, and its row is read only then.
    """
    _check_dbscan(graph, eps, min_samples)
    graph = graph.tocsr()
    if not graph.has_canonical_format:
        graph = graph.copy()
        graph.sum_duplicates()
    if graph.nnz and not (graph.data.min() >= 0 and graph.data.max() <= 1):
        raise ValueError(
            f"graph must hold distances in [0, 1], got values from {graph.data.min()} to {graph.data.max()}"
        )
    radius = graph.dtype.type(eps)
    if radius >= 1:  # every pair is near, the absent ones too
        return np.full(graph.shape[0], 0 if graph.shape[0] >= min_samples else -1, np.int64)
    near = graph.data <= radius
    kept = np.concatenate(([0], near.cumsum()))  # stored entries within eps before each entry
    return _grow_clusters(kept[graph.indptr], graph.indices[near], min_samples)


def _check_dbscan(graph: sparse.csr_array, eps: float, min_samples: int) -> None:
    if not sparse.issparse(graph) or graph.ndim != 2 or graph.shape[0] != graph.shape[1]:
        raise ValueError("graph must be a square scipy sparse matrix, such as jaccard_graph returns")
    if not np.issubdtype(graph.dtype, np.floating):
        raise ValueError(f"graph must hold floating point distances, got {graph.dtype}")
    if not (isinstance(eps, Real) and 0 < eps <= 1):
        raise ValueError(f"eps must lie in (0, 1], as the distances do, got {eps!r}")
    if not (isinstance(min_samples, Integral) and min_samples >= 1):
        raise ValueError(f"min_samples must be an integer of at least 1, got {min_samples!r}")


@njit(nogil=True, cache=True)
def _grow_clusters(indptr, neighbors, min_samples):
    """Grow each cluster from its first core point. neighbors[indptr[i]:indptr[i + 1]]: the points within eps of i."""
    num_points = len(indptr) - 1
    labels = np.full(num_points, -1, np.int64)
    stack = np.empty(num_points, np.int64)
    num_clusters = 0
    for seed in range(num_points):
        if labels[seed] != -1 or indptr[seed + 1] - indptr[seed] < min_samples:
            continue
        labels[seed] = num_clusters
        stack[0] = seed
        height = 1
        while height:
            height -= 1
            point = stack[height]
            for p in range(indptr[point], indptr[point + 1]):
                other = neighbors[p]
                if labels[other] == -1:
                    labels[other] = num_clusters
                    if indptr[other + 1] - indptr[other] >= min_samples:
                        stack[height] = other
                        height += 1
        num_clusters += 1
    return labels
