"""Pseudo-label quality against counting pairs, and churn against known changes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from fastreid_ice.core import churn, label_quality

TRUTH = np.repeat(np.arange(5), 6)


def count_pairs(labels, truth):
    """Precision, recall and F over all pairs of images, one by one."""
    together = belong = both = 0
    for i, j in itertools.combinations(range(len(labels)), 2):
        a, b = labels[i] == labels[j] != -1, truth[i] == truth[j]
        together, belong, both = together + a, belong + b, both + (a and b)
    return both / together, both / belong, 2 * both / (together + belong)


@pytest.mark.parametrize("seed", range(5))
def test_equals_counting_pairs(seed):
    random = np.random.default_rng(seed)
    labels = np.where(random.random(30) < 0.5, TRUTH, random.integers(-1, 7, 30))
    quality = label_quality(torch.tensor(labels), TRUTH)
    found = (quality.pairwise_precision, quality.pairwise_recall, quality.pairwise_f)
    np.testing.assert_allclose(found, count_pairs(labels, TRUTH))
    alone = np.where(labels < 0, 100 + np.arange(30), labels)
    assert quality.adjusted_rand_index == pytest.approx(adjusted_rand_score(TRUTH, alone))
    assert quality.normalized_mutual_information == pytest.approx(normalized_mutual_info_score(TRUTH, alone))


def test_extremes():
    assert set(vars(label_quality(TRUTH[::-1] * 7, TRUTH)).values()) == {1.0}
    noise = label_quality(np.full(30, -1), TRUTH)
    assert noise.adjusted_rand_index == noise.pairwise_precision == noise.pairwise_recall == noise.pairwise_f == 0
    lump = label_quality(np.zeros(30, int), TRUTH)
    assert lump.pairwise_recall == 1
    assert lump.adjusted_rand_index == lump.normalized_mutual_information == 0


def test_calling_images_noise_never_pays():
    some = np.where(np.arange(30) % 2, TRUTH, -1)
    fewer, all_ = label_quality(some, TRUTH), label_quality(TRUTH, TRUTH)
    assert fewer.pairwise_precision == 1
    for name, value in vars(fewer).items():
        assert value < getattr(all_, name) or name == "pairwise_precision"


@pytest.mark.parametrize(
    ("previous", "labels", "expected"),
    [
        ([0, 0, 1, 1, -1], [1, 1, 0, 0, -1], 0.0),  # renumbered
        ([0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1], 1 / 6),  # one image moved
        ([0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1], 2 / 6),  # a cluster split: the smaller part moved
        ([0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0], 2 / 6),  # two merged: the smaller moved
        ([0, 0, 0, -1], [0, 0, -1, 0], 2 / 4),  # one became noise, one was noise
        ([-1, -1], [-1, -1], 0.0),
        ([-1, -1], [0, 0], 1.0),
        ([0, 0, 1, 1], [0, 1, 0, 1], 3 / 4),  # ties keep one pairing only
    ],
)
def test_churn(previous, labels, expected):
    assert churn(torch.tensor(previous), torch.tensor(labels)) == pytest.approx(expected)


def test_churn_ignores_numbering_and_order():
    random = np.random.default_rng(0)
    previous, labels, shuffled = random.integers(-1, 20, 500), random.integers(-1, 20, 500), random.permutation(500)
    rename = np.append(random.permutation(20), -1)
    assert churn(previous, labels) == pytest.approx(churn(labels, previous), abs=0.05)
    assert churn(previous, rename[previous]) == 0
    assert churn(previous[shuffled], labels[shuffled]) == churn(previous, labels)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"labels and truth must be \(N,\) .* got \(2,\) and \(3,\)"):
        label_quality([0, 1], [0, 1, 2])
    with pytest.raises(ValueError, match=r"previous_labels and labels must be \(N,\) with N > 0"):
        churn([], [])
