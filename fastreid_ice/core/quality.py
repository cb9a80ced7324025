"""The quality of pseudo labels: compared with the truth if it is known, and from one epoch to the next if it is not.

Noise share and cluster sizes are properties of ``Clusters``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ._arrays import to_numpy


@dataclass(frozen=True)
class LabelQuality:
    """Agreement of pseudo labels with the truth, over all images.

    Attributes:
        adjusted_rand_index: 1 for the truth, about 0 for chance (Hubert and Arabie, 1985).
        normalized_mutual_information: in [0, 1]; mutual information divided by the mean of both entropies. It is not
            corrected for chance: many small clusters raise it.
        pairwise_precision: share of the pairs in one cluster that show one person, in [0, 1]; 0 if there is no pair in
            a cluster.
        pairwise_recall: share of the pairs of one person that are in one cluster, in [0, 1].
        pairwise_f: harmonic mean of precision and recall.
    """

    adjusted_rand_index: float
    normalized_mutual_information: float
    pairwise_precision: float
    pairwise_recall: float
    pairwise_f: float


def label_quality(labels: Tensor | np.ndarray, truth: Tensor | np.ndarray) -> LabelQuality:
    """Compare pseudo labels with true identities.

    A noise image counts as a cluster of its own, so it lowers recall but not precision. No measure can therefore be
    improved by leaving out the difficult images as noise.

    Args:
        labels: (N,) integers, -1 for noise.
        truth: (N,) integers, identities.

    Raises:
        ValueError: if the lengths differ or there are no images.
    """
    # Imported here because scikit-learn takes as long to import as the rest of core, which does not need it.
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import pair_confusion_matrix

    labels, truth = _aligned(labels=labels, truth=truth)
    singletons = labels.max() + 1 + np.arange(len(labels))
    labels = np.where(labels < 0, singletons, labels)
    (_, false_pairs), (missed_pairs, true_pairs) = pair_confusion_matrix(truth, labels).astype(float)
    return LabelQuality(
        adjusted_rand_index=float(adjusted_rand_score(truth, labels)),
        normalized_mutual_information=float(normalized_mutual_info_score(truth, labels)),
        pairwise_precision=_ratio(true_pairs, true_pairs + false_pairs),
        pairwise_recall=_ratio(true_pairs, true_pairs + missed_pairs),
        pairwise_f=_ratio(2 * true_pairs, 2 * true_pairs + false_pairs + missed_pairs),
    )


def churn(previous_labels: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> float:
    """Share of images whose cluster changed between two epochs, in [0, 1]; renumbering does not count as change.

    Two clusters are the same if each shares more images with the other than with any other cluster. An image has not
    changed if its two clusters are the same, or if it is noise (-1) in both epochs. Symmetric except for ties.

    Args:
        previous_labels: (N,) integers, -1 for noise.
        labels: (N,) integers, -1 for noise, of the same images.

    Raises:
        ValueError: if the lengths differ or there are no images.
    """
    previous_labels, labels = _aligned(previous_labels=previous_labels, labels=labels)
    clustered = (previous_labels >= 0) & (labels >= 0)
    pairs, counts = np.unique(np.stack((previous_labels, labels))[:, clustered], axis=1, return_counts=True)
    mutual = _largest(pairs[0], counts) & _largest(pairs[1], counts)
    stayed = counts[mutual].sum() + ((previous_labels < 0) & (labels < 0)).sum()
    return float(1 - stayed / len(labels))


def _largest(groups: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mask of the first entry with the largest count in each group."""
    order = np.lexsort((-counts, groups))
    mask = np.zeros(len(groups), bool)
    mask[order[np.unique(groups[order], return_index=True)[1]]] = True
    return mask


def _aligned(**arguments: Tensor | np.ndarray) -> list[np.ndarray]:
    (first, a), (second, b) = ((name, to_numpy(values)) for name, values in arguments.items())
    if a.ndim != 1 or a.shape != b.shape or len(a) == 0:
        raise ValueError(
            f"{first} and {second} must be (N,) with N > 0 and of the same length, got {a.shape} and {b.shape}"
        )
    return [a, b]


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
