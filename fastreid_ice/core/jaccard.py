"""Sparse Jaccard distance between k-reciprocal neighbourhoods.

Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017, in the form that
clustering methods for re-identification use. There are four stages, each a function from sparse matrix to sparse
matrix, and then the distance. Row i of every matrix describes image i. No array is N x N: time and memory grow with the
stored entries.

Every stage computes its rows in blocks, in threads. A row does not depend on the thread that computes it, so the
results do not depend on the number of threads.

Letters: N images, D dimensions, R(i, k) the mutual neighbours of i, E(i) its expanded set, V its weights, J distances.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from . import _jaccard_kernels as kernels
from ._arrays import map_blocks, to_numpy
from ._jaccard_tensors import graph_on_device
from .neighbors import checked_rows

_COPIED = 64  # rows per block whose neighbours' features are converted to float32
_AT_ONCE = 64  # rows per task of the distances from a few rows


def jaccard_graph(
    features: Tensor | np.ndarray,
    ranks: Tensor | np.ndarray,
    *,
    k1: int = 30,
    k2: int = 6,
    max_distance: float = 1.0,
    device: torch.device | str = "cpu",
) -> sparse.csr_array:
    """Build the sparse k-reciprocal Jaccard distance of all images.

    Args:
        features: (N, D) floating point; compared by direction, as in ``k_nearest``. The computation is in float32, and
            does not copy features of another precision as a whole.
        ranks: (N, >= k1) integers; each row holds the indices of its nearest neighbours, nearest first, including the
            row itself. Further columns are ignored.
        k1: neighbourhood size, in [2, N].
        k2: rows averaged in the query expansion, in [1, k1]; 1 leaves it out.
        max_distance: pairs further apart are dropped; in (0, 1].
        device: where to compute. On the CPU the stages are compiled loops, on any other device tensor operations, with
            the same result up to rounding.

    Returns:
        (N, N) symmetric float32 CSR matrix with sorted indices. It stores the distances below 1 and up to
        ``max_distance``, including zeros; an absent pair is at distance 1 (or beyond ``max_distance``). The diagonal
        is stored like any other entry, about 0, and is absent where a point has no mutual neighbour, not even itself
        (more than k1 copies of a row).

    Raises:
        ValueError: for arguments that do not fit each other or are out of range.

    Time O(N (k1 D + (k1 k2)^2)); memory O(N k1 k2) in addition to the arguments and the result. The result is far
    smaller with the ``eps`` of the clustering as ``max_distance``. Uses ``torch.get_num_threads()`` threads; the result
    does not depend on their number. Another device takes a copy of the features in float32, or float64 if they are.
    """
    check_max_distance(max_distance)
    if torch.device(device).type == "cpu":
        return jaccard_distances(jaccard_weights(features, ranks, k1=k1, k2=k2), max_distance)
    return _graph_of_tensors(*_checked(features, ranks, k1, k2), k2, max_distance, device)


def jaccard_weights(
    features: Tensor | np.ndarray, ranks: Tensor | np.ndarray, *, k1: int = 30, k2: int = 6
) -> sparse.csr_array:
    """The weights V (N, N) of ``jaccard_graph`` after the query expansion, float32 rows of sum 1 or 0.

    Args, errors: see ``jaccard_graph``.
    """
    features, ranks = _checked(features, ranks, k1, k2)
    # By definition this needs the image and k neighbours: round(k1 / 2) + 1 columns, and k1 + 1. The published
    # implementations search for only k1 columns, and every published result of this family of methods relies on that.
    reciprocal = mutual_neighbors(ranks[:, :k1])
    half = mutual_neighbors(ranks[:, : round(k1 / 2) + 1])
    expanded = expand(reciprocal, half)
    del reciprocal, half
    weights = neighbor_weights(features, expanded)
    return weights if k2 == 1 else average_over_neighbors(weights, ranks[:, :k2])


def choose_k1(num_images: int) -> int:
    """The neighbours in the k-reciprocal sets of a set of images: 3 ln N, rounded, at least 2 and at most 30.

    The published 30 is made for 10,000 images and more. Of a few hundred images it joins different people, since the
    lists of people with fewer images overlap; docs/clustering.md has the measurements. What would decide is the number
    of images of a person, which is not known; it grows with the set, but more slowly. 48 images give 12, 300 give 17,
    1,000 give 21, and from about 18,600 on it is 30.

    Args:
        num_images: N, at least 1.
    """
    return min(max(round(3 * math.log(num_images)), 2), 30)


def mutual_neighbors(ranks: np.ndarray) -> sparse.csr_array:
    """Stage 1, the sets R(i, k): neighbours of i that have i as a neighbour (sec. 3.2). (N, k) -> (N, N) pattern."""
    return _matrix(*_map_blocks(kernels.mutual_of_block, len(ranks), np.ascontiguousarray(ranks)))


def expand(reciprocal: sparse.csr_array, half: sparse.csr_array) -> sparse.csr_array:
    """Stage 2, the sets E(i): R(i, k1), and each R(q, k1/2) with q in R(i, k1) that is in it by over 2/3 (sec. 3.2)."""
    pattern = (reciprocal.indptr, reciprocal.indices, half.indptr, half.indices)
    return _matrix(*_map_blocks(kernels.expanded_of_block, reciprocal.shape[0], *pattern))


def neighbor_weights(
    features: np.ndarray, expanded: sparse.csr_array, furthest: np.ndarray | None = None
) -> sparse.csr_array:
    """Stage 3, the weights V: exp(-d) over E(i), scaled to sum 1; d is the squared distance of unit rows (sec. 3.3).

    With ``furthest`` (N,) float32, the largest of these distances in each row, (d / furthest) ** 2 replaces d.
    """
    (norms,) = _map_blocks(_norms_of_block, len(features), features)
    unusable = ~(np.isfinite(norms) & (norms > 0))
    if unusable.any():
        raise ValueError(
            f"features must be finite and not all zeros in a row, but row {unusable.argmax()} and "
            f"{unusable.sum() - 1} more of {len(features)} are; check the network that produced them"
        )
    # In this order rows with the same neighbours follow each other, which avoids most reads of features from memory.
    order = _first_columns(expanded).argsort(kind="stable").astype(expanded.indices.dtype)
    expanded = expanded[order]
    furthest = np.empty(0, np.float32) if furthest is None else furthest[order]
    arguments = (order, features, 1 / norms, furthest, expanded.indptr, expanded.indices)
    (weights,) = _map_blocks(_weights_of_block, len(features), *arguments)
    return sparse.csr_array((weights, expanded.indices, expanded.indptr), shape=expanded.shape)[order.argsort()]


def average_over_neighbors(weights: sparse.csr_array, ranks: np.ndarray) -> sparse.csr_array:
    """Stage 4, local query expansion: V_i becomes the mean of V_j over the first k2 neighbours j of i (sec. 3.4)."""
    arguments = (np.ascontiguousarray(ranks), weights.indptr, weights.indices, weights.data)
    return _matrix(*_map_blocks(kernels.average_of_block, len(ranks), *arguments))


def jaccard_distances(weights: sparse.csr_array, max_distance: float = 1.0) -> sparse.csr_array:
    """J_ij = 1 - t / (2 - t), t = sum_l min(V_il, V_jl), for rows of sum 1 (sec. 3.3), by an inverted index."""
    arrays = (*_with_inverted_index(weights), np.float32(max_distance))
    return _matrix(*kernels.mirrored(*_map_blocks(kernels.distances_of_block, weights.shape[0], *arrays)))


class DistancesOfRows:
    """The distances of ``jaccard_distances`` from some rows at a time, for more images than have room for all pairs.

    Args:
        weights: (N, N), of which one transposed copy is kept.
    """

    def __init__(self, weights: sparse.csr_array) -> None:
        self.arrays = (*_with_inverted_index(weights), np.float32(1))

    def __call__(self, start: int, stop: int, first: int) -> sparse.coo_array:
        """(stop - start, N - first), from the rows [start, stop) to the rows from ``first`` >= ``stop`` - 1 on."""
        counts, columns, distances = _map_blocks(
            lambda begin, end: kernels.distances_of_block(start + begin, start + end, *self.arrays),
            stop - start,
            block=_AT_ONCE,
        )
        rows = np.arange(stop - start).repeat(counts)
        kept = columns >= first
        shape = (stop - start, len(self.arrays[0]) - 1 - first)
        return sparse.coo_array((distances[kept], (rows[kept], columns[kept] - first)), shape=shape)


def _graph_of_tensors(
    features: np.ndarray, ranks: np.ndarray, k2: int, max_distance: float, device: torch.device | str
) -> sparse.csr_array:
    rows, scale = checked_rows(features, device)
    lists = torch.from_numpy(ranks).to(rows.device, torch.int64)
    entries = graph_on_device(rows, scale, lists, k2=k2, max_distance=max_distance)
    return _matrix(*(tensor.numpy() for tensor in entries))


def _with_inverted_index(weights: sparse.csr_array) -> list[np.ndarray]:
    """The arrays of the weights and those of the transposed matrix, as ``distances_of_block`` takes them."""
    inverted = weights.T.tocsr()  # this conversion sorts the indices
    return [array for matrix in (weights, inverted) for array in (matrix.indptr, matrix.indices, matrix.data)]


def checked_features(features: Tensor | np.ndarray) -> np.ndarray:
    """Features as a floating point (N, D) array of a type that NumPy supports; without a copy where possible."""
    if not isinstance(features, (Tensor, np.ndarray)):
        raise ValueError(f"features must be an array or a tensor, got a {type(features).__name__}")
    if isinstance(features, Tensor) and features.dtype == torch.bfloat16:
        features = features.float()
    features = to_numpy(features)
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.floating):
        raise ValueError(f"features must be a floating point (N, D) matrix, got {features.dtype} {features.shape}")
    return features


def check_max_distance(max_distance: float) -> None:
    if not isinstance(max_distance, (int, float, np.number)) or not 0 < max_distance <= 1:
        raise ValueError(f"max_distance must lie in (0, 1], got {max_distance}")


def _checked(
    features: Tensor | np.ndarray, ranks: Tensor | np.ndarray, k1: int, k2: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features, and the first k1 columns of ranks as int32; everything is checked but the values of the features."""
    features = checked_features(features)
    if not isinstance(ranks, (Tensor, np.ndarray)):
        raise ValueError(f"ranks must be an array or a tensor, got a {type(ranks).__name__}")
    ranks = to_numpy(ranks)
    if ranks.ndim != 2 or not np.issubdtype(ranks.dtype, np.integer):
        raise ValueError(f"ranks must be an integer (N, k) matrix, got {ranks.dtype} {ranks.shape}")
    num_rows = len(features)
    if len(ranks) != num_rows:
        raise ValueError(f"ranks and features must have the same number of rows, got {len(ranks)} and {num_rows}")
    for name, value in (("k1", k1), ("k2", k2)):
        if not isinstance(value, (int, np.integer)):
            raise ValueError(f"{name} must be an integer, got {value!r}")
    if k1 < 2:
        raise ValueError(f"k1 must be at least 2, got {k1}")
    if not 1 <= k2 <= k1:
        raise ValueError(f"k2 must lie in [1, k1 = {k1}], got {k2}")
    if k1 > num_rows or k1 > ranks.shape[1]:
        raise ValueError(
            f"k1 = {k1} neighbours need as many columns of ranks and as many images, got ranks of shape {ranks.shape}; "
            f"search for more neighbours or lower k1"
        )
    ranks = ranks[:, :k1]
    if ranks.min() < 0 or ranks.max() >= num_rows:
        raise ValueError(f"ranks must lie in [0, {num_rows}), got values from {ranks.min()} to {ranks.max()}")
    ranks = np.ascontiguousarray(ranks, np.int32)
    (repeats,) = _map_blocks(_repeats_of_block, num_rows, ranks)
    if repeats.any():
        raise ValueError(f"ranks must list no neighbour twice in a row, as row {repeats.argmax()} does")
    return features, ranks


def _map_blocks(kernel: Callable[..., Any], num_rows: int, *arguments: Any, **block: int) -> list[np.ndarray]:
    """The arrays that ``kernel(start, stop, *arguments)`` returns for blocks of rows, each joined over all rows."""
    blocks = map_blocks(kernel, num_rows, *arguments, **block)
    arrays = [list(parts) for parts in zip(*blocks, strict=True)]
    del blocks
    return [np.concatenate(arrays.pop(0)) for _ in range(len(arrays))]  # frees the parts as soon as they are joined


def _matrix(counts: np.ndarray, columns: np.ndarray, values: np.ndarray | None = None) -> sparse.csr_array:
    """The (N, N) matrix with ``counts`` entries in its rows; a pattern of True if no values are given."""
    indptr = np.append(0, counts.cumsum())
    if len(columns) <= np.iinfo(columns.dtype).max:
        indptr = indptr.astype(columns.dtype)  # or scipy would make both int64
    values = np.ones(len(columns), bool) if values is None else values
    return sparse.csr_array((values, columns, indptr), shape=(len(counts), len(counts)))


def _repeats_of_block(start: int, stop: int, ranks: np.ndarray) -> tuple[np.ndarray]:
    """Whether each row lists a neighbour twice."""
    block = np.sort(ranks[start:stop])
    return ((block[:, 1:] == block[:, :-1]).any(axis=1),)


def _norms_of_block(start: int, stop: int, features: np.ndarray) -> tuple[np.ndarray]:
    with np.errstate(over="ignore"):  # reported by the caller
        rows = features[start:stop].astype(np.float32, copy=False)
        return (np.sqrt(np.einsum("nd,nd->n", rows, rows)),)


def _first_columns(pattern: sparse.csr_array) -> np.ndarray:
    """The smallest column of each row, 0 for an empty one."""
    first = np.zeros(pattern.shape[0], pattern.indices.dtype)
    filled = np.diff(pattern.indptr) > 0
    first[filled] = np.minimum.reduceat(pattern.indices, pattern.indptr[:-1][filled])
    return first


def _weights_of_block(
    start: int,
    stop: int,
    order: np.ndarray,
    features: np.ndarray,
    scale: np.ndarray,
    furthest: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
) -> tuple[np.ndarray]:
    """Weights of rows [start, stop), which belong to the images ``order[start:stop]``, concatenated."""
    if features.dtype == np.float32:
        columns, limits = indices[indptr[start] : indptr[stop]], indptr[start : stop + 1]
        return (kernels.weights_of_rows(order[start:stop], features, scale, furthest[start:stop], limits, columns),)
    weights = []  # in other precisions, convert the features that a few rows need at a time
    for first in range(start, stop, _COPIED):
        last = min(first + _COPIED, stop)
        needed = np.append(order[first:last], indices[indptr[first] : indptr[last]])
        images, position = np.unique(needed, return_inverse=True)
        own, columns = np.split(position.astype(indices.dtype), [last - first])
        copies, limits = features[images].astype(np.float32), indptr[first : last + 1]
        weights.append(kernels.weights_of_rows(own, copies, scale[images], furthest[first:last], limits, columns))
    return (np.concatenate(weights),)
