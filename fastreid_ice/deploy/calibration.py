"""What similarity true matches have, estimated from the clusters of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from ..reporting import PseudoLabels
from .encoder import Encoder

CALIBRATED = 4096  # images of clusters, at least, from which the quantiles are taken
MOST_PAIRS = 10**6  # more pairs than this are sampled
BLOCK = 2**14  # pairs at a time
GRID = np.linspace(0, 1, 101)  # the quantiles that are kept
SEED = 0


def calibrate(
    clusters: PseudoLabels, encoder: Encoder, paths: Sequence[str], features: np.ndarray
) -> dict[str, list[float] | None]:
    """The quantiles of ``pair_quantiles`` in the clusters of a run, of all pairs and of those in two cameras.

    Features that are known are used; those of other images are extracted, for some thousand images at most.

    Args:
        clusters: the labels.
        encoder: extracts features that are not known.
        paths, features: N absolute paths and (N, D) float32 unit rows of images whose features are known.

    Returns:
        "all" and "other cameras" -> the quantiles, None if there are no such pairs.
    """
    rows = _drawn_clusters(clusters.labels)
    rows = rows[[os.path.isfile(clusters.paths[row]) for row in rows]]
    places = [os.path.abspath(clusters.paths[row]) for row in rows]
    row_of = {path: row for row, path in enumerate(paths)}
    held = np.array([path in row_of for path in places], bool)
    units, usable = np.empty((len(places), features.shape[1]), np.float32), np.ones(len(places), bool)
    units[held] = features[[row_of[path] for path in places if path in row_of]]
    if not held.all():
        units[~held], usable[~held] = encoder.encode([path for path in places if path not in row_of])
    labels = np.where(usable, clusters.labels[rows], -1)
    names, numbers = np.unique([clusters.cameras[row] for row in rows], return_inverse=True)
    cameras = np.where((names == "")[numbers], -1, numbers) if len(names) else numbers
    return {"all": pair_quantiles(units, labels), "other cameras": pair_quantiles(units, labels, cameras)}


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


def _drawn_clusters(labels: np.ndarray) -> np.ndarray:
    """The rows of clusters drawn with a fixed seed, until they hold ``CALIBRATED`` images."""
    names, numbers, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.random.default_rng(SEED).permutation(np.flatnonzero(names >= 0))
    drawn = order[sizes[order].cumsum() - sizes[order] < CALIBRATED]
    return np.flatnonzero(np.isin(numbers, drawn))
