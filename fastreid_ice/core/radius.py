"""Choosing the radius of DBSCAN from the graph alone, without true identities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy import sparse

from ._arrays import map_blocks
from .clustering import dbscan

RADII = np.linspace(0.2, 0.7, 21)
_SHARPNESS = 1.25


@dataclass(frozen=True, eq=False)
class EpsSweep:
    """The results of clustering at each of S radii, among which ``choose_eps`` chose.

    Attributes:
        eps: (S,) float64, ascending.
        expected_f: (S,) float64 in [0, 1], the expected pairwise F-measure; the chosen radius maximises it.
        num_clusters: (S,) int64.
        noise_share: (S,) float64, share of images in no cluster.
        largest: (S,) int64, number of images in the largest cluster.
    """

    eps: np.ndarray
    expected_f: np.ndarray
    num_clusters: np.ndarray
    noise_share: np.ndarray
    largest: np.ndarray


def choose_eps(graph: sparse.csr_array, *, min_samples: int = 4) -> tuple[float, EpsSweep]:
    """Choose the radius of ``dbscan`` whose clusters agree best with the graph.

    Two images at Jaccard distance J are assumed to show one person with probability p = (1 - J)^1.25, that is, by the
    share of neighbours that they have in common. With these probabilities a clustering has an expected pairwise
    F-measure

        F = 2 sum of p over the pairs that it joins / (number of pairs that it joins + sum of p over all pairs),

    the harmonic mean of expected precision and recall. A radius that is too small joins too few of the probable pairs.
    One that is too large merges different people: the number of joined pairs then grows with the square of the
    cluster's size, but the graph contains few of them, so F falls sharply. The exponent was chosen on real and drawn
    people with several networks; between 1.2 and 1.4 the choice changes little. If people have far fewer images than
    lists have neighbours and features are weak, the chosen radius is too large.

    Args:
        graph: (N, N) symmetric scipy sparse matrix of distances in [0, 1], as ``jaccard_graph``
            or ``camera_jaccard_graph`` returns it with ``max_distance=1``: distant pairs count too.
        min_samples: as in ``dbscan``.

    Returns:
        the radius, one of ``RADII``, from 0.2 to 0.7 in steps of 0.025, of equally good ones the smallest; and the
        results at all radii.

    Raises:
        ValueError: as ``dbscan``.

    Time O(S nnz) for S radii with small constants, less than a search for neighbours. Memory in addition to ``graph``:
    its pairs within 0.7, and N x S labels.
    """
    labels = [dbscan(graph, eps=RADII[-1], min_samples=min_samples)]  # checks the arguments
    graph = graph.tocsr()
    near = graph.data <= graph.dtype.type(RADII[-1])
    indptr = np.append(0, near.cumsum())[graph.indptr]
    within = sparse.csr_array((graph.data[near], graph.indices[near], indptr), shape=graph.shape)
    labels = [dbscan(within, eps=eps, min_samples=min_samples) for eps in RADII[:-1]] + labels

    joined = np.stack(labels, axis=1).astype(np.int32)
    arrays = (graph.indptr, graph.indices, graph.data, joined)
    parts = map_blocks(_expected_pairs_of_block, len(joined), *arrays)
    inside, everywhere = (sum(values) for values in zip(*parts, strict=True)) if parts else (np.zeros(len(RADII)), 0.0)
    sizes = [np.bincount(of_radius[of_radius >= 0], minlength=1) for of_radius in labels]
    pairs = np.array([(counts * (counts - 1)).sum() for counts in sizes])
    sweep = EpsSweep(
        eps=RADII.copy(),
        expected_f=2 * inside / np.maximum(pairs + everywhere, np.finfo(float).tiny),
        num_clusters=np.array([np.count_nonzero(counts) for counts in sizes]),
        noise_share=(joined < 0).sum(0) / max(len(joined), 1),
        largest=np.array([counts.max() for counts in sizes]),
    )
    return float(sweep.eps[sweep.expected_f.argmax()]), sweep


@njit(nogil=True, cache=True)
def _expected_pairs_of_block(start, stop, indptr, indices, data, labels):
    """The sum of p over the pairs of rows [start, stop) that each labelling of (N, S) joins, and over all pairs."""
    inside = np.zeros(labels.shape[1])
    everywhere = 0.0
    own = np.empty(labels.shape[1], labels.dtype)
    for i in range(start, stop):
        for s in range(len(own)):
            own[s] = labels[i, s] if labels[i, s] >= 0 else -2  # noise is not joined with anything
        for entry in range(indptr[i], indptr[i + 1]):
            j = indices[entry]
            if j != i:
                p = (1.0 - data[entry]) ** _SHARPNESS
                everywhere += p
                for s in range(len(own)):
                    inside[s] += p * (labels[j, s] == own[s])
    return inside, everywhere
