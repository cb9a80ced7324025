"""A person's corrections, alone and with tracks: no cluster contradicts them, by a loop over all pairs of images."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from fastreid_ice.core import (
    Constraints,
    ImageTable,
    combine_constraints,
    constrain_graph,
    correction_constraints,
    dbscan,
    enforce_constraints,
    track_constraints,
)

many = settings(derandomize=True, deadline=None, max_examples=300)
NONE = np.empty((0, 2), np.int64)


class Said(NamedTuple):
    """Rows as a person gives them."""

    same: set[tuple[int, int]]
    different: set[tuple[int, int]]
    names: dict[int, int]
    nobody: set[int]

    def constraints(self, num_images: int) -> Constraints:
        names, nobody = np.full(num_images, -1), np.zeros(num_images, bool)
        names[list(self.names)] = list(self.names.values())
        nobody[list(self.nobody)] = True
        same, different = (np.array(sorted(pairs), np.int64).reshape(-1, 2) for pairs in (self.same, self.different))
        return correction_constraints(num_images, same=same, different=different, names=names, nobody=nobody)

    def linked(self, num_images: int) -> np.ndarray:
        """(N, N) bool, by Warshall's algorithm: the pairs that rows together say are one person."""
        one = np.eye(num_images, dtype=bool)
        for a, b in (*self.same, *itertools.combinations(self.names, 2)):
            one[a, b] |= (a, b) in self.same or self.names[a] == self.names[b]
        one |= one.T
        for k in range(num_images):
            one |= one[:, k, None] & one[k]
        return one

    def forbidden(self) -> set[tuple[int, int]]:
        named = {(a, b) for a, b in itertools.combinations(sorted(self.names), 2) if self.names[a] != self.names[b]}
        return named | {tuple(sorted(pair)) for pair in self.different}

    def contradicts_itself(self, num_images: int) -> bool:
        one = self.linked(num_images)
        return any(one[a, b] for a, b in self.forbidden()) or any(one[a].sum() > 1 for a in self.nobody)


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, ImageTable, Said, np.ndarray, np.ndarray]:
    """Images with tracks in two cameras, rows, distances and labels."""
    number = draw(st.integers(2, 12))
    image = st.integers(0, number - 1)
    pair = st.tuples(image, image).filter(lambda two: two[0] != two[1])
    same, different = draw(st.sets(pair, max_size=5)), draw(st.sets(pair, max_size=5))
    names = draw(st.dictionaries(image, st.integers(0, 2), max_size=4))
    nobody = draw(st.sets(image, max_size=2)) - set(names)
    columns = [
        draw(st.lists(st.integers(low, high), min_size=number, max_size=number))
        for low, high in ((0, 1), (-1, 3), (-1, 9))
    ]
    cameras, tracks, times = map(torch.tensor, columns)
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    distances = np.triu(np.where(random.random((number, number)) < 0.5, random.random((number, number)), 1), 1)
    labels = random.integers(-1, draw(st.integers(0, 4)), number)
    labels[labels >= 0] = np.unique(labels[labels >= 0], return_inverse=True)[1]
    return number, ImageTable(cameras, tracks, times.double()), Said(same, different, names, nobody), distances, labels


def sparsify(distances: np.ndarray) -> sparse.csr_array:
    distances = np.where(np.tri(len(distances), k=-1), distances.T, distances)
    rows, columns = np.nonzero((distances < 1) & (distances > 0))
    return sparse.csr_array((distances[rows, columns], (rows, columns)), shape=distances.shape)


@many
@given(cases())
def test_labels_never_contradict_a_row(case: tuple) -> None:
    """With and without tracks, from any labels and from those of DBSCAN; contradictions of rows are refused."""
    number, known, said, distances, labels = case
    if said.contradicts_itself(number):
        with pytest.raises(ValueError, match="said"):
            said.constraints(number)
        return
    corrections = said.constraints(number)
    tracks = track_constraints(known)
    both, overruled = combine_constraints(tracks, corrections)
    one = said.linked(number)
    for constraints in (corrections, both):
        graph = constrain_graph(sparsify(distances), constraints)
        assert graph[list(said.nobody)].nnz == 0
        for before in (labels, dbscan(graph, eps=0.7, min_samples=2)):
            kept = enforce_constraints(before, graph, constraints, radius=0.7, min_size=3)
            found = kept.labels
            assert all(found[a] == found[b] >= 0 for a, b in np.argwhere(one) if a != b), "same"
            assert not any(found[a] == found[b] >= 0 for a, b in said.forbidden()), "different"
            assert (found[list(said.nobody)] == -1).all()
            assert set(found.tolist()) <= {-1, *range(found.max() + 1)} and np.bincount(found[found >= 0]).all()
            if constraints is both:
                check_tracks(found, tracks, both, said, overruled)


def check_tracks(found: np.ndarray, tracks: Constraints, both: Constraints, said: Said, overruled: int) -> None:
    """Those that nobody contradicts are kept as well."""
    real = np.array([image not in said.nobody for image in range(len(found))])
    broken = {t for t in set(tracks.groups.tolist()) if len(set(both.parts[(tracks.groups == t) & real].tolist())) > 1}
    for track in set(tracks.groups.tolist()) - broken:
        assert len(set(found[(tracks.groups == track) & real].tolist())) <= 1, "a track that is left has one label"
    dropped = 0
    for a, b in tracks.apart.tolist():
        groups = [set(both.groups[(tracks.groups == t) & real].tolist()) for t in (a, b)]
        if a in broken or b in broken or not all(groups):
            continue
        dropped += groups[0] == groups[1]
        labels = [set(found[(tracks.groups == t) & real].tolist()) for t in (a, b)]
        assert groups[0] == groups[1] or labels[0] == {-1} or labels[0] != labels[1]
    assert overruled == len(broken) + dropped
    if not said.different and len(set(said.names.values())) < 2:
        assert not broken, "only a person who says that two are different can contradict a track"


def test_same_between_two_clusters_makes_them_one() -> None:
    """The whole clusters, noise too, and what is only linked through a third image; other numbers close up."""
    labels = np.array([0, 0, 0, 1, 1, 2, 2, -1, -1, -1])
    said = Said({(0, 5), (5, 7), (8, 9)}, set(), {}, set()).constraints(10)
    found = enforce_constraints(labels, sparse.csr_array((10, 10)), said)
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 2, 2]
    assert (found.joined, found.split, found.violations) == (2, 0, 0)


def test_a_stray_image_moves_alone() -> None:
    """Linked to the centre of another cluster it moves there; with the centre of its own, the clusters become one."""
    labels = np.repeat([0, 1], [8, 6])
    offsets = np.array([0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5]) / 10
    nothing = sparse.csr_array((14, 14))
    moved = Said({(7, 8)}, set(), {}, set()).constraints(14)
    found = enforce_constraints(labels, nothing, moved, offsets=offsets)
    assert found.labels.tolist() == [0] * 7 + [1] * 7 and found.joined == 1
    both_strays = Said({(6, 13)}, set(), {}, set()).constraints(14)
    found = enforce_constraints(labels, nothing, both_strays, offsets=offsets)
    assert found.labels.tolist() == [0] * 8 + [1] * 5 + [0], "the one further from the centre"
    joined = Said({(0, 8), (6, 13)}, set(), {}, set()).constraints(14)
    assert enforce_constraints(labels, nothing, joined, offsets=offsets).labels.tolist() == [0] * 14
    # By the graph, if offsets are not given: the end of a chain is near one image only.
    distances = np.ones((14, 14))
    for one in [*range(7), *range(8, 13)]:
        distances[one, one + 1] = 0.5
    for linked, moved_images in (((7, 10), 1), ((3, 10), 6)):
        said = Said({linked}, set(), {}, set()).constraints(14)
        found = enforce_constraints(labels, sparsify(distances), said)
        assert np.count_nonzero(found.labels != labels) == moved_images


def test_a_forbidden_pair_cuts_what_same_has_joined() -> None:
    """Two clusters joined by a stray image: the image goes over, the rest of its cluster stays away."""
    distances = np.ones((6, 6))
    for a, b, step in ((0, 1, 0.1), (1, 2, 0.1), (3, 4, 0.1), (4, 5, 0.1), (2, 3, 0.4)):
        distances[a, b] = step
    labels = np.array([0, 0, 0, 1, 1, 1])
    said = Said({(1, 3)}, {(0, 4)}, {}, set()).constraints(6)
    graph = constrain_graph(sparsify(distances), said)
    found = enforce_constraints(labels, graph, said, radius=0.5, min_size=2)
    assert found.labels.tolist() == [0, 0, 0, 0, 1, 1]


def test_a_person_overrules_tracks() -> None:
    """A track of two persons is none; two tracks at once that are one person are; an image of nobody leaves."""
    tracks = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 3])
    times = torch.tensor([0, 1, 2, 0, 1, 5, 6, 5, 6]).double()
    known = ImageTable(torch.zeros(9, dtype=torch.int64), tracks, times)
    alone = track_constraints(known)
    assert alone.apart.tolist() == [[0, 1], [2, 3]]
    said = Said({(5, 7)}, {(0, 2)}, {}, {4}).constraints(9)
    both, overruled = combine_constraints(alone, said)
    assert overruled == 2
    groups = both.groups.tolist()
    assert len({*groups[:3], groups[3], groups[4]}) == 5 and len(set(groups[5:])) == 1 and len(set(groups)) == 6
    assert both.apart.tolist() == [sorted((groups[0], groups[2]))]
    assert len(set(both.parts.tolist())) == 7 and both.certain.tolist() == [g == groups[5] for g in range(6)]


def test_some_of_the_images() -> None:
    said = Said({(0, 2), (1, 4)}, {(0, 3), (1, 3)}, {}, {5}).constraints(6)
    part = said[torch.tensor([True, False, True, True, True, True])]
    assert part.groups.tolist() == [0, 0, 2, 1, 3] and part.certain.tolist() == [True, False, False, False]
    assert part.nobody.tolist() == [False] * 4 + [True] and len(set(part.parts.tolist())) == 5
    assert part.apart.tolist() == [[0, 2], [1, 2]]
    table = ImageTable(torch.zeros(6, dtype=torch.int64), corrections=said)
    assert table[torch.tensor([1, 4])].corrections.groups.tolist() == [0, 0]
    assert table.without_identities().corrections is table.to("cpu").corrections is said
    with pytest.raises(ValueError, match="corrections are those of 6 images, not of 3"):
        ImageTable(torch.zeros(3, dtype=torch.int64), corrections=said)


def test_named_people_are_apart() -> None:
    said = Said(set(), set(), {0: 0, 1: 0, 2: 1, 4: 2}, set()).constraints(5)
    assert said.apart.tolist() == [[0, 1], [0, 3], [1, 3]] and said.certain.tolist() == [True, False, False, False]
    nothing = Said(set(), set(), {}, set()).constraints(0)
    assert len(nothing.groups) == len(nothing.apart) == 0
