"""Evaluation of rankings, CMC, mAP and mINP, without the matrix of all distances.

Distances are computed for a block of queries at a time. Only the ranks of the true matches matter, and a rank is a
count of the gallery images that are closer.

Letters: Q queries, G gallery images, D dimensions, m true matches of a query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from scipy import sparse
from torch import Tensor

from ._arrays import map_blocks, to_numpy
from .jaccard import DistancesOfRows
from .neighbors import k_nearest

METRICS = ("cosine", "euclidean")
_AT_ONCE = 16  # queries per block that a thread ranks


@dataclass(frozen=True)
class RankMetrics:
    """The quality of a ranking; all values in [0, 1].

    Attributes:
        cmc: (max_rank,) float32 cumulative matching characteristic; ``cmc[0]`` is rank-1.
        average_precision: (V,) float64, of the V queries that have a true match, in their order; its mean is mAP.
        inverse_negative_penalty: (V,) float64, of the same queries; its mean is mINP.
    """

    cmc: np.ndarray
    average_precision: np.ndarray
    inverse_negative_penalty: np.ndarray


def rank_metrics(
    query_features: Tensor | np.ndarray,
    gallery_features: Tensor | np.ndarray,
    query_ids: Any,
    gallery_ids: Any,
    query_cameras: Any,
    gallery_cameras: Any,
    *,
    metric: str = "cosine",
    max_rank: int = 50,
    chunk_size: int = 256,
    device: torch.device | str | None = None,
) -> RankMetrics:
    """Rank the gallery for every query, by the protocol of Market-1501 (Zheng et al., ICCV 2015).

    Gallery images of the query's person in the query's camera are left out, and so are queries without a true match
    after that. With the 0-based ranks h_1 < ... < h_m of the true matches: AP = mean_j j / (h_j + 1),
    INP = m / (h_m + 1) (Ye et al., TPAMI 2021), and CMC(r) is the share of queries with h_1 < r.

    Args:
        query_features, gallery_features: (Q, D) and (G, D) floating point, compared in float32.
        query_ids, gallery_ids: (Q,) and (G,) integers, the persons.
        query_cameras, gallery_cameras: (Q,) and (G,) integers.
        metric: "cosine" or "euclidean".
        max_rank: length of the CMC, which may exceed G.
        chunk_size: queries per block.
        device: where to compute; by default where ``query_features`` lives.

    Raises:
        ValueError: for arguments that do not match each other or are out of range, features that are not finite, or if
            no query has a true match.

    Images at the same distance are ranked by ascending index. Time O(Q G (D + m)); memory for a copy of the features
    and two blocks of ``chunk_size`` x G float32.
    """
    blocks = distance_blocks(query_features, gallery_features, metric=metric, chunk_size=chunk_size, device=device)
    return rank_blocks(blocks, query_ids, gallery_ids, query_cameras, gallery_cameras, max_rank=max_rank)


def distance_blocks(
    query_features: Tensor | np.ndarray,
    gallery_features: Tensor | np.ndarray,
    *,
    metric: str = "cosine",
    chunk_size: int = 256,
    device: torch.device | str | None = None,
    progress: Callable[[Sequence[Tensor]], Iterable[Tensor]] = iter,
) -> Iterator[Tensor]:
    """The (Q, G) distances, in blocks of ``chunk_size`` rows: 1 - cosine, or squared Euclidean.

    Args, errors: see ``rank_metrics``; ``progress`` wraps the sequence of query blocks, silent by default.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    queries, gallery = torch.as_tensor(query_features), torch.as_tensor(gallery_features)
    if queries.dim() != 2 or gallery.dim() != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query_features and gallery_features must be (Q, D) and (G, D), got {tuple(queries.shape)} and "
            f"{tuple(gallery.shape)}"
        )
    device = queries.device if device is None else device
    queries, gallery = (features.detach().to(device, torch.float32) for features in (queries, gallery))
    for name, features in (("query_features", queries), ("gallery_features", gallery)):
        unusable = ~features.isfinite().all(1)
        if unusable.any():
            raise ValueError(
                f"{name} must be finite, but row {int(unusable.int().argmax())} and {int(unusable.sum()) - 1} more of "
                f"{len(features)} are not; check the network that produced them"
            )
    if metric == "cosine":
        queries, gallery = F.normalize(queries), F.normalize(gallery)
        return ((block @ gallery.T).neg_().add_(1) for block in progress(queries.split(chunk_size)))
    squares = gallery.square().sum(1)
    return (
        (block.square().sum(1, keepdim=True) + squares).addmm_(block, gallery.T, alpha=-2)
        for block in progress(queries.split(chunk_size))
    )


def expand_features(
    features: Tensor,
    k: int,
    *,
    alpha: float = 3.0,
    device: torch.device | str | None = None,
    progress: Callable[[Sequence[Tensor]], Iterable[Tensor]] = iter,
) -> Tensor:
    """Alpha query expansion (Radenović et al., TPAMI 2019): each row becomes the mean of similarity ** ``alpha`` times
    row over its ``k`` most similar rows, including itself.

    Args, errors: see ``k_nearest``, which searches; ``features`` (N, D) are not changed.
    """
    similarities, ranks = k_nearest(features, k, device=device, progress=progress)
    return F.embedding_bag(ranks, features, per_sample_weights=similarities**alpha, mode="sum") / k


def reranked_blocks(
    blocks: Iterable[Tensor], weights: sparse.csr_array, *, distance_weight: float = 0.3
) -> Iterator[Tensor]:
    """Blocks of ``distance_weight`` x distance + (1 - ``distance_weight``) x Jaccard distance.

    Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017, eq. 12. The Jaccard
    distances are computed for one block at a time, and not stored.

    Args:
        blocks: the (Q, G) distances, rows in blocks.
        weights: (Q + G, Q + G), the ``jaccard_weights`` of queries and gallery together, queries first.
        distance_weight: in [0, 1], called lambda in the paper.
    """
    jaccard = DistancesOfRows(weights)
    start = 0
    for block in blocks:
        near = jaccard(start, start + len(block), weights.shape[0] - block.shape[1])
        row, column, value = (torch.as_tensor(a, device=block.device) for a in (near.row, near.col, near.data))
        distances = torch.ones_like(block)
        distances[row.long(), column.long()] = value.to(block.dtype)
        yield distances * (1 - distance_weight) + block * distance_weight
        start += len(block)


def rank_blocks(
    blocks: Iterable[Tensor],
    query_ids: Any,
    gallery_ids: Any,
    query_cameras: Any,
    gallery_cameras: Any,
    *,
    max_rank: int = 50,
) -> RankMetrics:
    """Like ``rank_metrics``, for (Q, G) distances in blocks of rows; compared in float32, without NaN.

    Whatever the device of the distances, ranks are counted on the CPU, in ``torch.get_num_threads()`` threads.
    """
    if max_rank < 1:
        raise ValueError(f"max_rank must be at least 1, got {max_rank}")
    query_ids, query_cameras = _paired("query", query_ids, query_cameras)
    gallery_ids, gallery_cameras = _paired("gallery", gallery_ids, gallery_cameras)
    found = []
    start = 0
    for block in blocks:
        rows = slice(start, start + len(block))
        start = rows.stop
        if start > len(query_ids) or block.shape[1] != len(gallery_ids):
            raise ValueError(
                f"there are ids of {len(query_ids)} queries and {len(gallery_ids)} gallery images, and distances of "
                f"at least {start} to {block.shape[1]}"
            )
        arrays = (
            to_numpy(block.float().contiguous()),
            query_ids[rows],
            query_cameras[rows],
            gallery_ids,
            gallery_cameras,
        )
        found += map_blocks(_rank_rows, len(block), *arrays, block=_AT_ONCE)
    if start < len(query_ids):
        raise ValueError(f"there are ids of {len(query_ids)} queries, and distances of {start}")
    first, precision, penalty = (np.concatenate(parts) for parts in zip(*found, strict=True))
    valid = first >= 0
    if not valid.any():
        raise ValueError("no query has an image of its person in the gallery that is from another camera")
    hits = np.bincount(first[valid & (first < max_rank)], minlength=max_rank)
    return RankMetrics((hits.cumsum() / valid.sum()).astype(np.float32), precision[valid], penalty[valid])


def _paired(side: str, ids: Any, cameras: Any) -> tuple[np.ndarray, np.ndarray]:
    ids, cameras = np.ascontiguousarray(to_numpy(ids)), np.ascontiguousarray(to_numpy(cameras))
    if ids.ndim != 1 or ids.shape != cameras.shape or len(ids) == 0:
        raise ValueError(
            f"{side}_ids and {side}_cameras must hold a value for each image, got shapes {ids.shape} and "
            f"{cameras.shape}"
        )
    return ids.astype(np.int64, copy=False), cameras.astype(np.int64, copy=False)


@njit(nogil=True, cache=True)
def _rank_rows(start, stop, distances, query_ids, query_cameras, gallery_ids, gallery_cameras):
    """h_1, AP and INP of queries [start, stop); -1 and zeros for a query without a true match."""
    first = np.full(stop - start, -1)
    precision = np.zeros(stop - start)
    penalty = np.zeros(stop - start)
    for q in range(start, stop):
        person = np.flatnonzero(gallery_ids == query_ids[q])
        dropped = gallery_cameras[person] == query_cameras[q]
        right = person[~dropped]
        if len(right) == 0:
            continue
        row = distances[q]
        ranks = np.empty(len(right), np.int64)  # from 1
        for i, image in enumerate(right):
            ranks[i] = 1 + _closer(row, image)
            for other in person[dropped]:
                ranks[i] -= row[other] < row[image] or (row[other] == row[image] and other < image)
        ranks.sort()
        first[q - start] = ranks[0] - 1
        precision[q - start] = (np.arange(1, len(ranks) + 1) / ranks).mean()
        penalty[q - start] = len(ranks) / ranks[-1]
    return first, precision, penalty


@njit(nogil=True, cache=True)
def _closer(row, image):
    """How many images are closer than ``image``, or equally close with a lower index."""
    distance = row[image]
    count = 0
    for j in range(image):
        count += row[j] <= distance
    for j in range(image, len(row)):
        count += row[j] < distance
    return count
