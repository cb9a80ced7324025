"""What similarity true matches have, estimated from the clusters of a run."""

from __future__ import annotations

import numpy as np

MOST_PAIRS = 10**6  # more pairs than this are sampled
BLOCK = 2**14  # pairs at a time
GRID = np.linspace(0, 1, 101)  # the quantiles that are kept
SEED = 0


def pair_quantiles(features: np.ndarray, labels: np.ndarray, cameras: np.ndarray | None = None) -> list[float] | None:
    """The quantiles 0, 0.01, ..., 1 of the cosine between two images of one cluster.

    Args:
        features: (N, D) float32 unit rows.
        labels: (N,) int64, 0, 1, ...; -1 for images in no cluster.
        cameras: (N,) integers, -1 if not known; if given, only pairs in two known cameras count.

    Returns:
        101 ascending numbers in [-1, 1], or None if there is no such pair.

    Beyond a million pairs, a million are drawn with a fixed seed; then those in one camera are left out.
    """
    order = np.argsort(labels, kind="stable")
    order = order[np.count_nonzero(labels < 0) :]
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    later = np.repeat(starts + sizes, sizes) - np.arange(len(order)) - 1  # images of the same cluster after each one
    ends = later.cumsum()
    count = int(ends[-1]) if len(ends) else 0
    pairs = np.arange(count) if count <= MOST_PAIRS else np.random.default_rng(SEED).integers(count, size=MOST_PAIRS)
    first = np.searchsorted(ends, pairs, side="right")
    second = first + 1 + pairs - (ends - later)[first]
    first, second = order[first], order[second]
    if cameras is not None:
        kept = (cameras[first] != cameras[second]) & (cameras[first] >= 0) & (cameras[second] >= 0)
        first, second = first[kept], second[kept]
    if not len(first):
        return None
    cosines = np.empty(len(first), np.float32)
    for start in range(0, len(first), BLOCK):
        part = slice(start, start + BLOCK)
        np.einsum("nd,nd->n", features[first[part]], features[second[part]], out=cosines[part])
    return np.quantile(cosines.clip(-1, 1), GRID).round(6).tolist()


def similarity_above(quantiles: list[float], share: float) -> float:
    """The similarity above which a share in [0, 1] of the pairs lies."""
    return float(np.interp(1 - share, GRID, quantiles))
