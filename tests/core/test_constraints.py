"""Constraints from tracks against loops over pairs, and clusters that keep them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from fastreid_ice.core import (
    Constraints,
    ImageTable,
    constrain_graph,
    enforce_constraints,
    track_constraints,
)

many = settings(derandomize=True, deadline=None, max_examples=200)


def table(rows: list[tuple[int, int, float]]) -> ImageTable:
    """Of (camera, track, time) of each image."""
    cameras, tracks, times = zip(*rows, strict=True)
    return ImageTable(torch.tensor(cameras), torch.tensor(tracks), torch.tensor(times, dtype=torch.float64))


def sparsify(distances: np.ndarray) -> sparse.csr_array:
    rows, columns = np.nonzero(distances < 1)
    return sparse.csr_array((distances[rows, columns], (rows, columns)), shape=distances.shape)


def test_tracks_of_one_camera_that_overlap_are_apart() -> None:
    rows = [(0, 7, 1), (0, 7, 5), (0, 8, 5), (0, 8, 9), (1, 7, 2), (0, 9, 10), (0, -1, 3), (-1, 4, 1), (-1, 5, 1)]
    found = track_constraints(table([*rows, (0, 6, -1)]))
    # Track 7 of camera 0 ends when track 8 begins; the same number in camera 1 is another track; without a track, a
    # camera or a time nothing is apart.
    groups = found.groups.tolist()
    assert groups[0] == groups[1] and groups[2] == groups[3] and len(set(groups)) == 8
    assert found.apart.tolist() == [sorted((groups[0], groups[2]))]
    assert found.num_linked == 2


def test_without_tracks_there_is_no_constraint() -> None:
    found = track_constraints(ImageTable(torch.zeros(3, dtype=torch.int64)))
    assert found.groups.tolist() == [0, 1, 2] and found.apart.shape == (0, 2) and found.num_linked == 0


images = st.tuples(st.integers(-1, 2), st.integers(-1, 5), st.integers(-1, 12).map(float))


@many
@given(st.lists(images, min_size=1, max_size=40))
def test_constraints_are_those_of_a_loop_over_pairs(rows: list[tuple[int, int, float]]) -> None:
    found = track_constraints(table(rows))
    spans: dict[tuple[int, int], list[float]] = {}
    group_of: dict[int, tuple[int, int]] = {}
    for group, (camera, track, time) in zip(found.groups.tolist(), rows, strict=True):
        if track >= 0:
            assert group_of.setdefault(group, (camera, track)) == (camera, track)
            spans.setdefault((camera, track), []).extend([time] * (time >= 0))
    assert len(group_of) == len(spans), "images of a track are in one group"
    assert found.groups.max() + 1 == len(spans) + sum(track < 0 for _, track, _ in rows)
    expected = {
        frozenset((one, other))
        for one, other in itertools.combinations(spans, 2)
        if one[0] == other[0] >= 0 and spans[one] and spans[other]
        if min(spans[one]) <= max(spans[other]) and min(spans[other]) <= max(spans[one])
    }
    pairs = [frozenset(group_of[group] for group in pair) for pair in found.apart.tolist()]
    assert set(pairs) == expected and len(pairs) == len(expected)
    assert found.apart.tolist() == sorted(sorted(pair) for pair in found.apart.tolist())


def symmetric(random: np.random.Generator, values: np.ndarray, share: float) -> np.ndarray:
    """``values`` above the diagonal, mirrored below; at distance 1 but for a ``share`` of the pairs."""
    upper = np.triu(np.where(random.random(values.shape) < share, values, 1), 1)
    return upper + upper.T


def draw(seed: int, num_images: int = 40) -> tuple[np.ndarray, Constraints]:
    """(N, N) distances, many of them equal and most 1, of images of which a fifth is in one track, others in pairs."""
    random = np.random.default_rng(seed)
    distances = symmetric(random, random.integers(1, 6, (num_images, num_images)) / 10, 0.15)
    np.fill_diagonal(distances, random.random(num_images) < 0.1)  # some images are not near themselves
    groups = np.where(random.random(num_images) < 0.2, 0, random.integers(0, num_images, num_images))
    groups = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    pairs = [pair for pair in itertools.combinations(range(groups.max() + 1), 2) if random.random() < 0.15]
    return distances, Constraints(groups, np.array(pairs, np.int64).reshape(-1, 2))


@pytest.mark.parametrize("seed", range(6))
def test_forbidden_pairs_leave_the_graph(seed: int) -> None:
    distances, constraints = draw(seed)
    graph, groups = sparsify(distances), constraints.groups
    before = graph.copy()
    expected = distances.copy()
    for one, other in constraints.apart:
        expected[np.ix_(groups == one, groups == other)] = expected[np.ix_(groups == other, groups == one)] = 1
    found = constrain_graph(graph, constraints)
    assert found.has_canonical_format and found.dtype == graph.dtype and found.nnz < graph.nnz
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(found, name), getattr(sparsify(expected), name))
        np.testing.assert_array_equal(getattr(graph, name), getattr(before, name))


def joined_by_hand(
    labels: list[int],
    distances: np.ndarray,
    groups: list[int],
    apart: set[frozenset[int]],
    radius: float,
    min_size: int,
) -> list[set[int]]:
    """The clusters as sets of images: Kruskal's algorithm on the images, pair by pair."""
    clusters = [[i for i, label in enumerate(labels) if label == k] for k in range(max(labels, default=-1) + 1)]
    result = []
    for members in clusters:
        if not any(frozenset((groups[i], groups[j])) in apart for i in members for j in members):
            result += [set(members)] if members else []
            continue
        pieces = [{i for i in members if groups[i] == group} for group in sorted({groups[i] for i in members})]
        edges = sorted(
            (distances[i, j], min(i, j), max(i, j))
            for i in members
            for j in members
            if groups[i] < groups[j] and distances[i, j] <= min(radius, 0.999)
        )
        for _, i, j in edges:
            one, other = (next(piece for piece in pieces if image in piece) for image in (i, j))
            forbidden = any(frozenset((groups[a], groups[b])) in apart for a in one for b in other)
            if one is not other and not forbidden:
                pieces.remove(other)
                one |= other
        result += [piece for piece in pieces if len(piece) >= min_size]
    return result


@pytest.mark.parametrize("min_size", [1, 4])
@pytest.mark.parametrize("seed", range(12))
def test_clusters_are_cut_as_by_hand(seed: int, min_size: int) -> None:
    random = np.random.default_rng(seed + 100)
    _, constraints = draw(seed)
    distances = symmetric(random, (1 + random.permutation(1600).reshape(40, 40)) / 1700, 0.15)  # no ties
    groups = constraints.groups
    label_of = random.integers(0, 4, groups.max() + 1) - 1  # of whole tracks
    graph = constrain_graph(sparsify(distances), constraints)
    before = label_of[groups]
    found = enforce_constraints(before, graph, constraints, radius=0.8, min_size=min_size)
    apart = {frozenset(pair) for pair in constraints.apart.tolist()}
    clusters = {label: set(np.flatnonzero(found.labels == label).tolist()) for label in range(found.labels.max() + 1)}
    expected = joined_by_hand(before.tolist(), distances, groups.tolist(), apart, 0.8, min_size)
    assert sorted(map(sorted, clusters.values())) == sorted(map(sorted, expected))
    inside = [pair for pair in constraints.apart if label_of[pair[0]] == label_of[pair[1]] >= 0]
    assert (found.split, found.violations) == (0, len(inside))
    assert found.repaired == len({label_of[pair[0]] for pair in inside}) > 0
    assert found.labels[before < 0].max(initial=-1) == -1


@many
@given(st.integers(0, 10_000))
def test_constraints_hold_whatever_the_labels(seed: int) -> None:
    random = np.random.default_rng(seed)
    distances, constraints = draw(seed, 30)
    graph = constrain_graph(sparsify(distances), constraints)
    labels = random.integers(-1, 3, 30)
    before = labels.copy()
    found = enforce_constraints(labels, graph, constraints)
    own = np.full(constraints.groups.max() + 1, -1)
    own[constraints.groups] = found.labels
    np.testing.assert_array_equal(own[constraints.groups], found.labels, "a track has one label")
    assert not any(own[one] == own[other] >= 0 for one, other in constraints.apart)
    assert set(found.labels.tolist()) <= {-1, *range(found.labels.max() + 1)} and found.labels.dtype == np.int64
    assert np.bincount(found.labels[found.labels >= 0]).all(), "no gaps"
    assert found.split == sum(len(set(labels[constraints.groups == group])) > 1 for group in range(len(own)))
    np.testing.assert_array_equal(labels, before)


def test_the_longest_step_between_two_is_cut() -> None:
    """A chain of six images whose ends are forbidden to each other."""
    steps = [0.1, 0.2, 0.6, 0.3, 0.1]
    distances = np.ones((6, 6))
    for i, step in enumerate(steps):
        distances[i, i + 1] = distances[i + 1, i] = step
    constraints = Constraints(np.arange(6), np.array([[0, 5]]))
    found = enforce_constraints(np.zeros(6, int), sparsify(distances), constraints)
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    for min_size, expected in ((1, [0, 0, 0, 1, 2, 2]), (3, [0, 0, 0, -1, -1, -1])):
        found = enforce_constraints(np.zeros(6, int), sparsify(distances), constraints, radius=0.2, min_size=min_size)
        assert found.labels.tolist() == expected


def test_a_track_gets_the_cluster_of_most_of_its_images() -> None:
    constraints = Constraints(np.array([0, 0, 0, 1, 1, 2, 3]), np.empty((0, 2), np.int64))
    found = enforce_constraints(np.array([1, 0, 1, 0, -1, -1, 0]), sparse.csr_array((7, 7)), constraints)
    assert found.labels.tolist() == [1, 1, 1, 0, 0, -1, 0]
    assert (found.split, found.violations, found.repaired) == (2, 0, 0)


def test_constraints_of_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"graph is \(3, 3\), but the constraints are those of 2 images"):
        constrain_graph(sparse.csr_array((3, 3)), Constraints(np.arange(2), np.empty((0, 2), int)))


def test_no_images() -> None:
    constraints = track_constraints(ImageTable(torch.zeros(0, dtype=torch.int64)))
    graph = constrain_graph(sparse.csr_array((0, 0)), constraints)
    assert enforce_constraints(np.zeros(0, int), graph, constraints).labels.shape == (0,)
