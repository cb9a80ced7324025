"""Camera-aware Jaccard distance, for clustering and for re-ranking.

Chen, Fan, Chen, Zhu, "CA-Jaccard: Camera-aware Jaccard Distance for Person Re-identification", CVPR 2024, in the form
of the authors' code. Images of the same camera look alike, and displace those of other cameras from a single list of
nearest neighbours. Therefore there are two lists, A of the own camera and B of the others (see ``camera_neighbors``),
and the stages of ``jaccard`` use both:

    E(i)  the mutual neighbours of A, k1_intra and the image itself, and those of B, k1_inter + 1 images (CKRNNs)
    V_i   weights exp(-d) over E(i), scaled to sum 1; there is no two-thirds expansion
    W_i   the mean of V_j over the first k2_intra entries of A and the first k2_inter of B (CLQE)

The distances are those of W.
"""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ._arrays import to_numpy
from ._candidates import Progress
from .camera_neighbors import camera_neighbors
from .jaccard import (
    average_over_neighbors,
    check_max_distance,
    checked_features,
    jaccard_distances,
    mutual_neighbors,
    neighbor_weights,
)
from .neighbors import checked_rows
from .retrieval import distance_blocks, reranked_blocks
from .screen import rounded_units


def camera_jaccard_graph(
    features: Tensor | np.ndarray,
    cameras: Tensor | np.ndarray,
    *,
    k1_intra: int = 5,
    k1_inter: int = 20,
    k2_intra: int = 2,
    k2_inter: int = 4,
    max_distance: float = 1.0,
    device: torch.device | str | None = None,
    progress: Progress = iter,
) -> sparse.csr_array:
    """Build the sparse camera-aware Jaccard distance of all images, searching for their neighbours.

    The published code uses k2_intra = k2_inter = 3 for the first clustering of a run, whatever its settings.

    Args:
        features: (N, D) floating point of any row norm but zero; compared by direction.
        cameras: (N,) integers, compared for equality only; unknown cameras, for instance all -1, are one camera.
        k1_intra: images of the own camera in addition to the image itself, at least 1.
        k1_inter: the list of other cameras has k1_inter + 1 images, as published; at least 1.
        k2_intra: rows of the own camera in the query expansion, including the image itself; at least 0.
        k2_inter: rows of other cameras in it, at least 0; k2_intra = 1 with k2_inter = 0 leaves the expansion out.
        max_distance: pairs further apart are dropped; in (0, 1].
        device: where neighbours are searched; by default where ``features`` lives.
        progress: wraps the sequence of query blocks, for instance ``tqdm``; silent by default.

    Returns:
        (N, N) symmetric float32 CSR matrix, as ``jaccard_graph`` returns it.

    Raises:
        ValueError: for arguments that do not fit each other or are out of range.

    If a camera has too few images, or all other cameras together have too few, the list continues with images of the
    other kind. Time O(N^2 D) for the search; memory linear in N in addition to ``features`` and a copy of them in the
    precision of the product.
    """
    check_max_distance(max_distance)
    numbers = {"k1_intra": k1_intra, "k1_inter": k1_inter, "k2_intra": k2_intra, "k2_inter": k2_inter}
    weights = _camera_weights(features, cameras, numbers, device, progress)
    return jaccard_distances(weights, max_distance)


def camera_reranked_blocks(
    query_features: Tensor | np.ndarray,
    gallery_features: Tensor | np.ndarray,
    query_cameras: Tensor | np.ndarray,
    gallery_cameras: Tensor | np.ndarray,
    *,
    k1_intra: int = 5,
    k1_inter: int = 20,
    k2_intra: int = 3,
    k2_inter: int = 3,
    distance_weight: float = 0.3,
    chunk_size: int = 256,
    device: torch.device | str | None = None,
    progress: Progress = iter,
) -> Iterator[Tensor]:
    """The (Q, G) re-ranked distances in blocks of ``chunk_size`` rows, for ``rank_blocks``.

    They are ``distance_weight`` D + (1 - ``distance_weight``) J. For this the authors' code uses another distance than
    for clustering: the squared Euclidean distance d of queries and gallery together is squared again and scaled,
    D_ij = d_ij^2 / max_l d_il^2. D also replaces d in the weights V.

    Args:
        query_features, gallery_features: (Q, D) and (G, D) floating point; compared by direction, in float32.
        query_cameras, gallery_cameras: (Q,) and (G,) integers.
        k1_intra, k1_inter, k2_intra, k2_inter: as in ``camera_jaccard_graph``.
        distance_weight: in [0, 1], called lambda in the paper.
        chunk_size: queries per block.
        device: where neighbours are searched and distances are computed; by default that of ``query_features``.
        progress: wraps the sequence of blocks in the search.

    Raises:
        ValueError: for arguments that do not fit each other or are out of range.

    Time O((Q + G)^2 D). Memory linear in Q + G in addition to a joint float32 copy of the features and one of their
    unit rows.
    """
    if not 0 <= distance_weight <= 1:
        raise ValueError(f"distance_weight must lie in [0, 1], got {distance_weight}")
    query_features, gallery_features = torch.as_tensor(query_features), torch.as_tensor(gallery_features)
    num_queries = len(query_features)
    device = query_features.device if device is None else device
    features = torch.cat([rows.detach().to("cpu", torch.float32) for rows in (query_features, gallery_features)])
    cameras = np.concatenate([to_numpy(query_cameras), to_numpy(gallery_cameras)])
    numbers = {"k1_intra": k1_intra, "k1_inter": k1_inter, "k2_intra": k2_intra, "k2_inter": k2_inter}
    furthest = _furthest(features, chunk_size, device)
    weights = _camera_weights(features, cameras, numbers, device, progress, furthest=furthest.numpy())
    scales = furthest[:num_queries, None].to(device).split(chunk_size)
    distances = distance_blocks(
        features[:num_queries], features[num_queries:], metric="cosine", chunk_size=chunk_size, device=device
    )
    squared = ((2 * block / scale).square() for block, scale in zip(distances, scales, strict=True))
    return reranked_blocks(squared, weights, distance_weight=distance_weight)


def _camera_weights(
    features: Tensor | np.ndarray,
    cameras: Tensor | np.ndarray,
    numbers: dict[str, int],
    device: torch.device | str | None,
    progress: Progress,
    furthest: np.ndarray | None = None,
) -> sparse.csr_array:
    """The weights W (N, N). numbers: k1_intra, k1_inter, k2_intra and k2_inter, in this order."""
    for name, value in numbers.items():
        least = 1 if name.startswith("k1") else 0
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    k1_intra, k1_inter, k2_intra, k2_inter = numbers.values()
    if k2_intra + k2_inter == 0:
        raise ValueError("k2_intra and k2_inter are both 0, which averages nothing; 1 and 0 leave the expansion out")
    lengths = max(k1_intra + 1, k2_intra), max(k1_inter + 1, k2_inter)
    if max(lengths) > len(features):
        raise ValueError(
            f"{max(lengths)} neighbours need as many images, got {len(features)}; lower k1_intra = {k1_intra}, "
            f"k1_inter = {k1_inter}, k2_intra = {k2_intra} or k2_inter = {k2_inter}"
        )
    lists = camera_neighbors(features, cameras, *lengths, device=device, progress=progress)
    intra, inter = (ranks.numpy().astype(np.int32) for ranks in lists)
    neighbors = mutual_neighbors(intra[:, : k1_intra + 1]) + mutual_neighbors(inter[:, : k1_inter + 1])
    weights = neighbor_weights(checked_features(features), neighbors, furthest)
    return average_over_neighbors(weights, np.hstack([intra[:, :k2_intra], inter[:, :k2_inter]]))


def _furthest(features: Tensor, chunk_size: int, device: torch.device | str) -> Tensor:
    """(N,) float32, the largest squared distance of unit rows in each row."""
    rows, scale = checked_rows(features, device)
    units, _ = rounded_units(torch.float32, rows, scale)
    lowest = units.new_full((len(units),), torch.inf)
    for start in range(0, len(units), chunk_size):  # a product of two rows serves both
        products = units[start : start + chunk_size] @ units[start:].T
        own, later = lowest[start : start + chunk_size], lowest[start:]
        torch.minimum(later, products.amin(0), out=later)
        torch.minimum(own, products.amin(1), out=own)
    return 2 - 2 * lowest.cpu()
