"""HDBSCAN on k-reciprocal Jaccard distances."""

from __future__ import annotations

import numpy as np
from fastreid.config import CfgNode
from numba import njit
from scipy import sparse
from scipy.sparse import csgraph

from .base import CLUSTERER_REGISTRY
from .jaccard_dbscan import JaccardClusterer


@CLUSTERER_REGISTRY.register()
class HDBSCAN(JaccardClusterer):
    """HDBSCAN (Campello et al., PAKDD 2013; scikit-learn's) on the sparse Jaccard graph; it needs no ``eps``.

    The graph keeps every pair below distance 1 and not only those within an ``eps``, so it takes several times the
    memory of ``JaccardDBSCAN``. The result is never a single cluster of all images: if they cannot be split, they are
    noise.

    Args:
        min_cluster_size: smaller groups of images are noise; at least 2.
        graph: keywords of ``JaccardClusterer``.
    """

    if_all_noise = "lower CLUSTER.MIN_SAMPLES or CLUSTER.MIN_CLUSTER_SIZE"
    order_matters = True  # ties, see ``hdbscan``

    def __init__(self, *, min_cluster_size: int = 4, **graph) -> None:
        super().__init__(**graph)
        self.min_cluster_size = min_cluster_size

    @classmethod
    def from_config(cls, cfg: CfgNode) -> HDBSCAN:
        return cls(min_cluster_size=cfg.CLUSTER.MIN_CLUSTER_SIZE, **cls.graph_keywords(cfg))

    @property
    def min_size(self) -> int:
        return self.min_cluster_size

    def partition(self, graph: sparse.csr_array) -> np.ndarray:
        with self.stage("hdbscan"):
            return hdbscan(graph, min_cluster_size=self.min_cluster_size, min_samples=self.min_samples)


def hdbscan(graph: sparse.csr_array, *, min_cluster_size: int, min_samples: int) -> np.ndarray:
    """The clusters of ``sklearn.cluster.HDBSCAN`` on the dense matrix with 1 in place of absent pairs.

    The clusters may differ where distances tie: with ``min_samples`` above 2 many mutual reachability distances are
    equal, and which of them comes first depends on the form of the matrix, as it does on the order of the images. An
    image that is joined to a group of ``min_cluster_size`` only at distance 1 is always noise here.

    Args:
        graph: (N, N) symmetric scipy CSR matrix of distances in [0, 1], as ``jaccard_graph`` returns it, N >= 2.
        min_cluster_size: at least 2.
        min_samples: at least 1.

    Returns:
        (N,) integer labels, -1 for noise, else 0..C-1.

    Memory is linear in the stored entries and N, time nearly so.
    """
    # Imported here because it takes a third of a second, and few runs use this clusterer.
    from sklearn.cluster import HDBSCAN as Model

    reachability = _connect(_mutual_reachability(graph, min_samples), min_cluster_size)
    # With min_samples 1 scikit-learn uses the distances unchanged.
    model = Model(min_cluster_size=min_cluster_size, min_samples=1, metric="precomputed", copy=False)
    return model.fit(reachability).labels_


def _mutual_reachability(graph: sparse.csr_array, min_samples: int) -> sparse.csr_array:
    """max(d_ij, core_i, core_j) if below 1; core_i is the distance of i's ``min_samples``-th nearest, including itself.

    scikit-learn has this too, but refuses rows with fewer than ``min_samples`` entries; here their core distance is 1.
    """
    rows = np.repeat(np.arange(graph.shape[0], dtype=np.int32), np.diff(graph.indptr))
    core = _core_distances(graph.indptr, graph.data.astype(np.float64), min_samples)
    distances = np.maximum(graph.data, np.maximum(core[rows], core[graph.indices]))
    near = distances < 1
    distances = distances[near].clip(np.finfo(np.float32).eps)  # 0 would be an absent edge
    columns = graph.indices[near].astype(np.int32, copy=False)  # SciPy 1.15 needs 32-bit indices for trees
    return sparse.csr_array((distances, (rows[near], columns)), shape=graph.shape)


def _connect(graph: sparse.csr_array, min_cluster_size: int) -> sparse.csr_array:
    """Link every connected component to the largest one, because scikit-learn requires a connected graph.

    Components that can be a cluster are linked at distance 1, smaller ones beyond, so that they leave the tree first.
    """
    _, component = csgraph.connected_components(graph, directed=False)
    _, members, sizes = np.unique(component, return_index=True, return_counts=True)
    members = members.astype(graph.indices.dtype)
    hub = members[sizes.argmax()]
    others = members != hub
    lengths = np.where(sizes[others] < min_cluster_size, 2.0, 1.0)
    links = sparse.csr_array((lengths, (members[others], np.full(len(lengths), hub))), shape=graph.shape)
    return graph + (links + links.T)


@njit(nogil=True, cache=True)
def _core_distances(indptr, data, min_samples):
    """(N,) the ``min_samples``-th smallest entry of each row, 1 if there are fewer."""
    core = np.ones(len(indptr) - 1)
    for i in range(len(core)):
        row = data[indptr[i] : indptr[i + 1]]
        if len(row) >= min_samples:
            core[i] = np.partition(row, min_samples - 1)[min_samples - 1]
    return core
