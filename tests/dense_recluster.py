"""The whole reclustering by its formulas, on N x N matrices, to check and time the sparse one against.

Zhong et al., CVPR 2017, in the form that clustering methods for re-identification share; then scikit-learn's DBSCAN.
Every stage is a function from dense matrix to dense matrix, in the precision of the features. N = 10,000 takes seconds
and gigabytes.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import DBSCAN
from torch import Tensor


def dense_recluster(
    features: Tensor, *, k1: int = 30, k2: int = 6, eps: float = 0.55, min_samples: int = 4
) -> np.ndarray:
    """Pseudo labels (N,) of features (N, D), -1 for noise."""
    similarity = cosine_similarity(features)
    distance = jaccard(similarity, nearest(similarity, k1), k2=k2)
    return DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit_predict(distance.numpy())


def cosine_similarity(features: Tensor) -> Tensor:
    """(N, N); each image is infinitely similar to itself, so that it comes first even among copies."""
    rows = F.normalize(features)
    return (rows @ rows.T).fill_diagonal_(torch.inf)


def nearest(similarity: Tensor, k: int) -> Tensor:
    """(N, k): every whole row is ranked, ties by ascending index, and its first k are kept."""
    return torch.cat(
        [rows.argsort(dim=1, descending=True, stable=True)[:, :k].clone() for rows in similarity.split(1024)]
    )


def jaccard(similarity: Tensor, ranks: Tensor, *, k2: int) -> Tensor:
    """Jaccard distances (N, N) from similarities (N, N) and neighbours (N, k1), by the four stages below."""
    k1 = ranks.shape[1]
    # The image and k1 neighbours are k1 + 1 columns, of which the published code searches for k1.
    expanded = expand(mutual(ranks, k1), mutual(ranks, round(k1 / 2) + 1))
    weighted = weights(similarity, expanded)
    return distances(average(weighted, ranks[:, :k2]) if k2 > 1 else weighted)


def mutual(ranks: Tensor, columns: int) -> Tensor:
    """R: (N, N) whether i and j are each among the first columns of the other's neighbours."""
    listed = torch.zeros(len(ranks), len(ranks), dtype=torch.bool).scatter_(1, ranks[:, :columns], True)
    return listed & listed.T


def expand(reciprocal: Tensor, half: Tensor) -> Tensor:
    """E(i) = R(i), with each R'(q), q in R(i), of which over 2/3 lie in R(i)."""
    expanded = reciprocal.clone()
    for i, own in enumerate(reciprocal):
        candidates = half[own]
        accepted = 3 * (candidates & own).sum(1) > 2 * candidates.sum(1)
        expanded[i] |= candidates[accepted].any(0)
    return expanded


def weights(similarity: Tensor, expanded: Tensor) -> Tensor:
    """V_ij = exp(-d_ij) over E(i), rows scaled to sum 1; d_ij = 2 - 2 s_ij, the squared distance of unit rows."""
    kernel = (2 * similarity.clone().fill_diagonal_(1) - 2).exp_() * expanded
    return kernel / kernel.sum(1, keepdim=True).clamp(min=torch.finfo(kernel.dtype).tiny)


def average(weighted: Tensor, ranks: Tensor) -> Tensor:
    """V_i becomes the mean of V_j over its first k2 neighbours j. weighted: (N, N); ranks: (N, k2)."""
    return sum(weighted[neighbor] for neighbor in ranks.T) / ranks.shape[1]


def distances(weighted: Tensor) -> Tensor:
    """J_ij = 1 - t / (2 - t), t = sum over l of min(V_il, V_jl)."""
    by_column = weighted.T.contiguous()
    shared = torch.empty_like(weighted)
    for i, row in enumerate(weighted):
        # If V_il is 0, so is the minimum.
        columns = row.nonzero().squeeze(1)
        shared[i] = by_column[columns].minimum(row[columns, None]).sum(0)
    return (1 - shared / (2 - shared)).clamp_(min=0)
