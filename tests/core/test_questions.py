"""The order of questions to a person: by a loop over pairs, and on people of whom it is known what is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastreid_ice.core import Constraints, doubtful_pairs


def draw(sizes: list[int], *, seed: int = 0, noise: float = 0.35) -> tuple[Tensor, Tensor]:
    """Unit features of so many images of each person, and who they are."""
    random = torch.Generator().manual_seed(seed)
    people = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    directions = F.normalize(torch.randn(len(sizes), 64, generator=random, dtype=torch.float64))
    spread = torch.randn(len(people), 64, generator=random, dtype=torch.float64) / 8
    return F.normalize(directions[people] + noise * spread), people


def by_hand(features: Tensor, labels: Tensor, pair: tuple[int, int]) -> float:
    """The margin of a question, set by set; the halves of a cluster are those of the two images."""
    rows, own = features.numpy(), labels.numpy()
    one, other = (own[image] for image in pair)
    if one == other:
        members = np.flatnonzero(own == one)
        nearer = rows[members] @ rows[pair[1]] > rows[members] @ rows[pair[0]]
        sets = [members[~nearer], members[nearer]]
    else:
        sets = [np.flatnonzero(own == one), np.flatnonzero(own == other)]
    third = [
        max((rows[a] @ rows[np.flatnonzero(own == k)].T).mean() for k in set(own.tolist()) - {-1, one, other})
        for a in sets
    ]
    return float((rows[sets[0]] @ rows[sets[1]].T).mean() - np.mean(third))


def test_doubt_is_that_of_a_loop_over_pairs() -> None:
    """Six clusters, so that every other one is compared; clear halves, so that those of the medoids are 2-means'."""
    features, people = draw([9, 7, 5, 8, 6, 4, 3, 5, 2, 6, 7, 5], noise=0.2)
    labels = people // 2
    labels[[0, 20]] = -1
    before = features.clone(), labels.clone()
    pairs, doubt = doubtful_pairs(features, labels)
    asked = [tuple(pair) for pair in pairs.tolist()]
    together = (labels[pairs[:, 0]] == labels[pairs[:, 1]]).numpy()
    assert together.sum() == 6 and len(asked) == 6 + 15 and pairs.dtype == torch.int64
    margins = np.array([by_hand(features, labels, pair) for pair in asked])
    centre = [margins[together].mean(), margins[~together].mean()]
    variance = np.concatenate((margins[together] - centre[0], margins[~together] - centre[1])).var()
    odds = np.exp((margins - np.mean(centre)) * max(centre[0] - centre[1], 0) / variance) * 6 / 15
    same = odds / (1 + odds)
    sizes = [sorted((labels == k).sum().item() for k in labels[list(pair)].tolist())[0] for pair in asked]
    for place, pair in enumerate(asked):
        if together[place]:  # two persons each, and the smaller has so many images
            assert people[pair[0]] != people[pair[1]]
            sizes[place] = min(int(((people == people[image]) & (labels >= 0)).sum()) for image in pair)
    expected = np.where(together, 1 - same, same) * sizes
    np.testing.assert_allclose(doubt, expected, rtol=1e-9)
    assert (doubt.diff() <= 0).all() and (doubt > 0).all()
    assert torch.equal(features, before[0]) and torch.equal(labels, before[1])


def test_what_is_wrong_comes_first_and_large_before_small() -> None:
    """Among 30 people, two are mixed twice and two are in two clusters twice, with many images and with few."""
    sizes = [16] * 30
    sizes[1] = sizes[3] = 4  # the smaller part of the second mix, and of the second pair
    features, people = draw(sizes)
    labels = people.clone()
    labels[people == 29] = 28  # mixed: 16 and 16
    labels[people == 1] = 0  # 4 and 16
    labels[(people == 20).nonzero()[8:, 0]] = 40  # apart: 8 and 8
    labels[(people == 3).nonzero()[2:, 0]] = 41  # 2 and 2
    labels = labels.unique(return_inverse=True)[1]
    pairs, doubt = doubtful_pairs(features, labels)
    of = [tuple(sorted(people[pair].tolist())) for pair in pairs]
    places = [of.index(pair) for pair in ((28, 29), (20, 20), (0, 1), (3, 3))]
    # Of 123 questions. The other early ones are about two persons with 16 images each who look alike.
    assert len(of) == 123 and places[0] == 0 and max(places) < 10
    assert places[0] < places[2] and places[1] < places[3], "large before small"
    assert doubt[places].tolist() == pytest.approx([16, 8, 4, 2], rel=0.1)
    # The centre of the cluster is asked about, not any of its images.
    one = int(pairs[of.index((20, 20)), 0])
    members = (labels == labels[one]).nonzero()[:, 0]
    assert one == members[(features[members] @ features[members].mean(0)).argmax()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_known_is_not_asked(dtype: torch.dtype) -> None:
    features, people = draw([12] * 8)
    labels = people.clone()
    labels[people == 7] = 6
    features = features.to(dtype)
    pairs, doubt = doubtful_pairs(features, labels)
    assert doubt.dtype == dtype and sorted(people[pairs[0]].tolist()) == [6, 7]
    groups = np.arange(96)
    groups[int(pairs[0, 1])] = groups[int(pairs[0, 0])]  # a person has said that they are one
    groups = np.unique(groups, return_inverse=True)[1]
    apart = np.sort(groups[[[0, 12]]])  # images of clusters 0 and 1
    left, left_doubt = doubtful_pairs(features, labels, constraints=Constraints(groups, apart))
    known = ((labels[pairs] == 6).all(1)) | (labels[pairs].sort(1).values == torch.tensor([0, 1])).all(1)
    assert known.sum() == 2
    assert torch.equal(left, pairs[~known]) and torch.equal(left_doubt, doubt[~known])


@pytest.mark.parametrize(
    ("labels", "questions"),
    [([], 0), ([-1, -1, -1], 0), ([0], 0), ([0, -1, 0], 1), ([0, 0, 1], 2), ([0, 1], 1), ([0, 1, 2, 3], 6)],
)
def test_few_images(labels: list[int], questions: int) -> None:
    features = F.normalize(torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(0)))
    pairs, doubt = doubtful_pairs(features, torch.tensor(labels, dtype=torch.int64))
    assert pairs.shape == (questions, 2) and doubt.shape == (questions,) and doubt.isfinite().all()
    assert all(labels[image] >= 0 for pair in pairs.tolist() for image in pair)


def test_equal_images_are_not_divided() -> None:
    features = F.normalize(torch.ones(6, 3))
    pairs, _ = doubtful_pairs(features, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert pairs.tolist() == [[0, 3]]


def test_shapes_that_do_not_match_are_named() -> None:
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(4,\)"):
        doubtful_pairs(torch.zeros(3, 2), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="no image has label 0"):
        doubtful_pairs(torch.ones(2, 2), torch.ones(2, dtype=torch.int64))
