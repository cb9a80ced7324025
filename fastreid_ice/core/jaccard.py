"""Sparse Jaccard distance between k-reciprocal neighbourhoods.

Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017, in the form that
clustering methods for re-identification share. Four stages, each a function from sparse matrix to sparse matrix, then
the distance. Row i of every matrix describes image i. Nothing is N x N: time and memory grow with the stored entries.

Letters: N images, D dimensions, R(i, k) the mutual neighbours of i, E(i) its expanded set, V its weights, J distances.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit
from scipy import sparse
from torch import Tensor

from ._arrays import to_numpy

_BLOCK = 1024  # rows per task; fixed, so that results do not depend on the number of threads


def jaccard_graph(
    features: Tensor | np.ndarray,
    ranks: Tensor | np.ndarray,
    *,
    k1: int = 30,
    k2: int = 6,
    max_distance: float = 1.0,
) -> sparse.csr_array:
    """Build the sparse k-reciprocal Jaccard distance of all images.

    Args:
        features: (N, D) floating point; compared by direction, as in :func:`~fastreid_ice.core.k_nearest`.
        ranks: (N, >= k1) integers, each row the indices of its nearest neighbours, nearest first, the row itself
            included; further columns are ignored.
        k1: neighbourhood size, in [2, N].
        k2: rows averaged in the query expansion, in [1, k1]; 1 leaves it out.
        max_distance: pairs further apart are dropped; in (0, 1].

    Returns:
        (N, N) symmetric float32 CSR matrix with sorted indices. Stored are the distances below 1 and up to
        ``max_distance``, zeros explicitly; an absent pair is at distance 1 (or beyond ``max_distance``). The diagonal
        is stored like any other entry, about 0, and absent where a point has no mutual neighbour, not even itself (more
        than k1 copies of a row).

    Raises:
        ValueError: for arguments that do not fit each other or are out of range.

    Time O(N (k1 D + (k1 k2)^2)), memory O(N (D + k1 k2)) and the result, which is far smaller with the ``eps`` of the
    clustering as ``max_distance``. Uses ``torch.get_num_threads()`` threads; the result does not depend on them.
    """
    features, ranks = _checked(features, ranks, k1, k2, max_distance)
    # The definition asks for the image and k neighbours: round(k1 / 2) + 1 columns, and k1 + 1, of which the published
    # implementations search for k1. Every published number of this family of methods was made so.
    reciprocal = mutual_neighbors(ranks[:, :k1])
    half = mutual_neighbors(ranks[:, : round(k1 / 2) + 1])
    weights = neighbor_weights(features, expand(reciprocal, half))
    if k2 > 1:
        weights = average_over_neighbors(weights, ranks[:, :k2])
    return jaccard_distances(weights, max_distance)


def mutual_neighbors(ranks: np.ndarray) -> sparse.csr_array:
    """Stage 1, the sets R(i, k): the neighbours of i that have i among theirs (sec. 3.2). (N, k) -> (N, N) of ones."""
    neighbors = _rows_to_csr(ranks, np.ones(ranks.shape, np.float32))
    neighbors.sum_duplicates()
    if neighbors.nnz < ranks.size:
        raise ValueError("ranks must list no neighbour twice in a row")
    return neighbors * neighbors.T


def expand(reciprocal: sparse.csr_array, half: sparse.csr_array) -> sparse.csr_array:
    """Stage 2, the sets E(i): R(i, k1) and each R(q, k1/2), q in R(i, k1), that lies in it by over 2/3 (sec. 3.2)."""
    size = np.diff(half.indptr)
    overlap = (reciprocal @ half.T) * reciprocal
    overlap.data = (3 * overlap.data > 2 * size[overlap.indices]).astype(np.float32)
    overlap.eliminate_zeros()
    return reciprocal + overlap @ half


def neighbor_weights(features: np.ndarray, expanded: sparse.csr_array) -> sparse.csr_array:
    """Stage 3, the weights V: exp(-d) over E(i), scaled to sum 1; d the squared distance of unit rows (sec. 3.3)."""
    scale = 1 / np.sqrt(np.einsum("nd,nd->n", features, features)).clip(1e-12)
    blocks = _map_blocks(_weights_of_block, len(features), features, scale, expanded.indptr, expanded.indices)
    return sparse.csr_array((np.concatenate(blocks), expanded.indices, expanded.indptr), shape=expanded.shape)


def average_over_neighbors(weights: sparse.csr_array, ranks: np.ndarray) -> sparse.csr_array:
    """Stage 4, local query expansion: V_i becomes the mean of V_j over the first k2 neighbours j of i (sec. 3.4)."""
    return _rows_to_csr(ranks, np.full(ranks.shape, 1 / ranks.shape[1], np.float32)) @ weights


def jaccard_distances(weights: sparse.csr_array, max_distance: float = 1.0) -> sparse.csr_array:
    """J_ij = 1 - t / (2 - t), t = sum_l min(V_il, V_jl), for rows of sum 1 (sec. 3.3), by an inverted index."""
    inverted = weights.T.tocsr()  # this conversion sorts the indices
    blocks = _map_blocks(
        _distances_of_block,
        weights.shape[0],
        weights.indptr,
        weights.indices,
        weights.data,
        inverted.indptr,
        inverted.indices,
        inverted.data,
        np.float32(max_distance),
    )
    counts, columns, distances = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    rows = np.repeat(np.arange(len(counts), dtype=columns.dtype), counts)
    above = rows != columns
    mirrored = (np.append(rows, columns[above]), np.append(columns, rows[above]))
    return sparse.csr_array((np.append(distances, distances[above]), mirrored), shape=weights.shape)


def _checked(
    features: Tensor | np.ndarray, ranks: Tensor | np.ndarray, k1: int, k2: int, max_distance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Features as float32 and ranks as the index type that suits scipy, both checked."""
    features, ranks = to_numpy(features), to_numpy(ranks)
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.floating):
        raise ValueError(f"features must be a floating point (N, D) matrix, got {features.dtype} {features.shape}")
    if ranks.ndim != 2 or not np.issubdtype(ranks.dtype, np.integer):
        raise ValueError(f"ranks must be an integer (N, k) matrix, got {ranks.dtype} {ranks.shape}")
    num_rows = len(features)
    if len(ranks) != num_rows:
        raise ValueError(f"ranks and features must have the same number of rows, got {len(ranks)} and {num_rows}")
    if k1 < 2:
        raise ValueError(f"k1 must be at least 2, got {k1}")
    if not 1 <= k2 <= k1:
        raise ValueError(f"k2 must lie in [1, k1 = {k1}], got {k2}")
    if k1 > num_rows or k1 > ranks.shape[1]:
        raise ValueError(
            f"k1 = {k1} neighbours need as many columns of ranks and as many images, got ranks of shape {ranks.shape}; "
            f"search for more neighbours or lower k1"
        )
    if not 0 < max_distance <= 1:
        raise ValueError(f"max_distance must lie in (0, 1], got {max_distance}")
    ranks = ranks[:, :k1]
    if ranks.min() < 0 or ranks.max() >= num_rows:
        raise ValueError(f"ranks must lie in [0, {num_rows}), got values from {ranks.min()} to {ranks.max()}")
    features = np.ascontiguousarray(features, np.float32)
    if not np.isfinite(features).all():
        raise ValueError("features must be finite, got NaN or infinite values; check the network that produced them")
    return features, ranks.astype(np.int32 if ranks.size <= np.iinfo(np.int32).max else np.int64)


def _rows_to_csr(columns: np.ndarray, values: np.ndarray) -> sparse.csr_array:
    """The (N, N) matrix with ``values`` (N, k) at ``columns`` (N, k), a copy because scipy sorts in place."""
    num_rows, k = columns.shape
    indptr = np.arange(0, num_rows * k + 1, k, dtype=columns.dtype)
    return sparse.csr_array((values.ravel(), columns.flatten(), indptr), shape=(num_rows, num_rows))


def _map_blocks(kernel: Callable[..., Any], num_rows: int, *arrays: Any) -> list[Any]:
    """Run ``kernel(start, stop, *arrays)`` over blocks of rows, in threads; results in row order.

    The kernels release the interpreter lock. Plain threads and not numba's own: those do not survive a fork, which data
    loaders do, nor all of them two callers at once.
    """
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        starts = range(0, num_rows, _BLOCK)
        return list(pool.map(lambda start: kernel(start, min(start + _BLOCK, num_rows), *arrays), starts))


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _weights_of_block(start, stop, features, scale, indptr, indices):
    """Weights of rows [start, stop), concatenated. scale: (N,) one over the norm of each feature row."""
    first = indptr[start]
    weights = np.empty(indptr[stop] - first, np.float32)
    for i in range(start, stop):
        total = 0.0
        for p in range(indptr[i], indptr[i + 1]):
            j = indices[p]
            dot = np.float32(0)
            for d in range(features.shape[1]):
                dot += features[i, d] * features[j, d]
            weight = np.exp(2 * dot * scale[i] * scale[j] - 2)
            weights[p - first] = weight
            total += weight
        for p in range(indptr[i], indptr[i + 1]):
            weights[p - first] /= total
    return weights


@njit(nogil=True, cache=True)
def _distances_of_block(start, stop, indptr, indices, data, inv_indptr, inv_indices, inv_data, max_distance):
    """Distances of rows [start, stop) on and above the diagonal: entries per row, column and distance of each entry."""
    shared = np.zeros(len(indptr) - 1, np.float32)  # t of the current row with every row
    touched = np.empty(len(indptr) - 1, indices.dtype)
    counts = np.empty(stop - start, np.int64)
    columns = np.empty(64 * (stop - start), indices.dtype)
    distances = np.empty(len(columns), np.float32)
    filled = 0
    for i in range(start, stop):
        num_touched = 0
        for p in range(indptr[i], indptr[i + 1]):
            for q in range(inv_indptr[indices[p] + 1] - 1, inv_indptr[indices[p]] - 1, -1):
                j = inv_indices[q]
                if j < i:  # indices are sorted: the rest is below the diagonal
                    break
                if shared[j] == 0:
                    touched[num_touched] = j
                    num_touched += 1
                shared[j] += min(data[p], inv_data[q])

        if filled + num_touched > len(columns):
            columns = np.append(columns, np.empty(len(columns) + num_touched, columns.dtype))
            distances = np.append(distances, np.empty(len(distances) + num_touched, np.float32))
        before = filled
        for j in touched[:num_touched]:
            distance = np.float32(max(0.0, 1 - shared[j] / (2 - shared[j])))
            shared[j] = 0
            if distance < 1 and distance <= max_distance:
                columns[filled] = j
                distances[filled] = distance
                filled += 1
        counts[i - start] = filled - before
    return counts, columns[:filled], distances[:filled]
