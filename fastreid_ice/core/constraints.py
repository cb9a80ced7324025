"""What tracks and a person say about images: which must share a cluster, and which must not.

A track is one person crossing the view of one camera, so its images are one person (must-link). Two tracks of one
camera that overlap in time are two persons (cannot-link). A person's corrections say both of single images
(corrections.py). Forbidden pairs leave the distance graph before it is clustered, and all is enforced on the clusters
afterwards.

Letters: N images, T tracks, G groups (tracks, and images without one), P parts of groups, M forbidden pairs, E stored
entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from scipy import sparse
from scipy.sparse import csgraph

from ._arrays import to_numpy
from .images import ImageTable

CENTRAL = 0.25  # the share of a cluster's images that speak for it when a person links them


@dataclass(frozen=True, eq=False)
class Constraints:
    """Which of N images are one person, and which are two.

    Attributes:
        groups: (N,) int64 in 0..G-1. The images of a group are one person; an image of which nothing is known is alone
            in its.
        apart: (M, 2) int64, pairs of groups that are two persons, each once, the smaller number first, in ascending
            order.
        parts: (N,) int64 in 0..P-1, the part of its group that an image belongs to: a track, or an image that a person
            has linked. A group of several parts is certain. By default every group is one part.
        certain: (G,) bool, groups of which a person has linked images; by default none.
        nobody: (N,) bool, images that show no person; each is alone in its group. By default none.
    """

    groups: np.ndarray
    apart: np.ndarray
    parts: np.ndarray = None  # type: ignore[assignment]  # arrays, once it is made
    certain: np.ndarray = None  # type: ignore[assignment]
    nobody: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        for name, default in (
            ("parts", self.groups),
            ("certain", np.zeros(self.groups.max(initial=-1) + 1, bool)),
            ("nobody", np.zeros(len(self.groups), bool)),
        ):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)

    def __getitem__(self, rows: Any) -> Constraints:
        """Those of some images, by a slice, a mask (N,) or indices, as ``ImageTable`` takes them."""
        rows = rows if isinstance(rows, slice) else to_numpy(rows)
        present, groups, sizes = np.unique(self.groups[rows], return_inverse=True, return_counts=True)
        number = np.full(len(self.certain), -1)
        number[present] = np.arange(len(present))
        apart = number[self.apart]
        return Constraints(
            groups,
            apart[(apart >= 0).all(1)],
            np.unique(self.parts[rows], return_inverse=True)[1],
            self.certain[present] & (sizes > 1),
            self.nobody[rows],
        )

    @property
    def num_linked(self) -> int:
        """The number of pairs of images that are one person."""
        sizes = np.bincount(self.groups)
        return int((sizes * (sizes - 1) // 2).sum())

    @property
    def keys(self) -> np.ndarray:
        """(M,) int64, ``apart`` as ascending numbers, one for each pair."""
        return _keys(self.groups, self.apart[:, 0], self.apart[:, 1])


@dataclass(frozen=True, eq=False)
class Enforced:
    """Labels that keep the constraints, and what that took.

    Attributes:
        labels: (N,) int64, -1 for noise, else 0..C-1 without gaps.
        split: parts, such as tracks, whose images had different labels.
        joined: certain groups that were not in one cluster.
        violations: forbidden pairs of groups that were in one cluster.
        repaired: clusters that held such a pair, and were cut.
    """

    labels: np.ndarray
    split: int
    joined: int
    violations: int
    repaired: int


def track_constraints(known: ImageTable) -> Constraints:
    """The constraints that tracks, cameras and times imply.

    A track lasts from the first to the last known time of its images, both included. Nothing is forbidden to a track
    without a known time or camera, nor to an image without a track: two boxes in a frame may show one person.

    Time and memory are O(N log N + M).
    """
    cameras, tracks, times = (to_numpy(column) for column in (known.cameras, known.tracks, known.times))
    tracked = np.flatnonzero(tracks >= 0)
    owners, inverse = np.unique(np.stack((cameras[tracked], tracks[tracked]), 1), axis=0, return_inverse=True)
    groups = np.empty(len(tracks), np.int64)
    groups[tracked] = inverse.ravel()
    groups[tracks < 0] = len(owners) + np.arange(len(tracks) - len(tracked))

    timed = tracked[times[tracked] >= 0]
    first, last = np.full(len(owners), np.inf), np.full(len(owners), -np.inf)
    np.minimum.at(first, groups[timed], times[timed])
    np.maximum.at(last, groups[timed], times[timed])
    placed = np.flatnonzero((first <= last) & (owners[:, 0] >= 0))
    return Constraints(groups, _overlaps(owners[placed, 0], first[placed], last[placed], placed))


def _overlaps(cameras: np.ndarray, first: np.ndarray, last: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(M, 2) pairs of ``numbers`` whose intervals [first, last] overlap in one camera."""
    # Whole numbers that order the beginnings and ends of all cameras, one camera after the other.
    ticks, ranks = np.unique(np.concatenate((first, last)), return_inverse=True)
    offsets = np.unique(cameras, return_inverse=True)[1] * len(ticks)
    begins, ends = offsets + ranks[: len(first)], offsets + ranks[len(first) :]
    order = begins.argsort(kind="stable")
    begins, ends, numbers = begins[order], ends[order], numbers[order]
    # Later in this order, and begun when this one ends: a run of neighbours.
    positions = np.arange(len(order))
    counts = begins.searchsorted(ends, side="right") - positions - 1
    one = positions.repeat(counts)
    other = one + 1 + np.arange(len(one)) - (counts.cumsum() - counts).repeat(counts)
    pairs = np.sort(np.stack((numbers[one], numbers[other]), 1), axis=1)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def constrain_graph(graph: sparse.csr_array, constraints: Constraints) -> sparse.csr_array:
    """A distance graph without the entries of forbidden pairs, which no cluster can then be joined through.

    Images that show nobody lose all entries, so that they make no other image dense.
    Images of a group keep their distances. At distance 0 they would be dense by themselves, however few images of
    others are near: measured, that joins more people than it finds, and makes each track a cluster of HDBSCAN's.

    Args:
        graph: (N, N) CSR matrix of distances in [0, 1], as ``jaccard_graph`` returns it; not changed.
        constraints: of the same N images.

    Returns:
        A matrix of the same form.

    Raises:
        ValueError: constraints of another number of images.

    Time is O(N + E log M), memory linear.
    """
    groups = constraints.groups
    if graph.shape != (len(groups), len(groups)):
        raise ValueError(f"graph is {graph.shape}, but the constraints are those of {len(groups)} images")
    rows, columns = _entries(graph)
    kept = ~_among(_keys(groups, groups[rows], groups[columns]), constraints.keys)
    kept &= ~(constraints.nobody[rows] | constraints.nobody[columns])
    before = np.concatenate(([0], kept.cumsum(dtype=graph.indptr.dtype)))[graph.indptr]
    return sparse.csr_array((graph.data[kept], columns[kept], before), shape=graph.shape)


def enforce_constraints(
    labels: np.ndarray,
    graph: sparse.csr_array,
    constraints: Constraints,
    *,
    offsets: np.ndarray | None = None,
    radius: float = 1.0,
    min_size: int = 1,
) -> Enforced:
    """Clusters that keep all constraints, from clusters that may not.

    1. The images of a part get the cluster that most of them have, the first of several; noise does not count. Images
       that show nobody are noise.
    2. A certain group gets the cluster in which one of its images is the most central. The clusters of which several
       of its images are among the most central quarter become one: a person who links the centres of two clusters means
       the clusters, but one who links a stray image means this image alone. If all of the group is noise, it becomes a
       cluster.
    3. A cluster that holds a forbidden pair is cut at its weakest links: its images are joined again, in order of
       distance, except where that would join a forbidden pair (Kruskal's algorithm with refusals). Two groups that are
       forbidden to each other are thus separated at the longest step of the best way between them.

    Args:
        labels: (N,) integers, -1 for noise, else 0..C-1; not changed.
        graph: (N, N) symmetric CSR matrix, from ``constrain_graph``; not changed.
        constraints: of the same N images.
        offsets: (N,) how far each image is from the centre of its cluster, in any unit; by default the more, the less
            the sum of 1 - distance to the others of its cluster is.
        radius: longer distances do not join: the ``eps`` of the clustering.
        min_size: a piece of a cut cluster with fewer images and without a certain group is noise.

    Time is O(N log N + E log E + M log M), memory linear; clusters without a forbidden pair cost O(N + E) together.
    """
    groups = constraints.groups
    labels = np.where(constraints.nobody, -1, labels).astype(np.int64)
    own, split, joined = _labels_of_groups(labels, graph, offsets, constraints)
    first, second = constraints.apart.T
    violated = (own[first] >= 0) & (own[first] == own[second])
    broken = np.unique(own[first[violated]])
    if len(broken):
        rows, columns = _entries(graph)
        one, other = groups[rows], groups[columns]
        joins = (one < other) & (own[one] == own[other]) & (graph.data <= graph.dtype.type(radius))
        joins &= np.isin(own, broken)[one]
        nearest = np.flatnonzero(joins)[graph.data[joins].argsort(kind="stable")]
        roots = _join(one[nearest], other[nearest], first[violated], second[violated], len(own))
        cut = np.isin(own, broken)
        own = np.where(cut, own.max() + 1 + roots, own)
        sizes = np.bincount(own[groups][own[groups] >= 0], minlength=own.max() + 1)
        kept = np.zeros(len(sizes), bool)
        kept[own[constraints.certain]] = True
        own[cut & (sizes[own] < min_size) & ~kept[own]] = -1
    found = np.full(len(groups), -1)
    clustered = own[groups] >= 0
    found[clustered] = np.unique(own[groups][clustered], return_inverse=True)[1]
    return Enforced(found, split, joined, int(violated.sum()), len(broken))


def _entries(graph: sparse.csr_array) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(graph.shape[0]).repeat(np.diff(graph.indptr)), graph.indices


def _keys(groups: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """A number for each pair of groups, the same for both orders."""
    return np.minimum(one, other) * (groups.max(initial=0) + 1) + np.maximum(one, other)


def _among(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Whether each value is among those in ascending order."""
    if not len(ascending):
        return np.zeros(len(values), bool)
    return ascending[ascending.searchsorted(values).clip(max=len(ascending) - 1)] == values


def _labels_of_groups(
    labels: np.ndarray, graph: sparse.csr_array, offsets: np.ndarray | None, constraints: Constraints
) -> tuple[np.ndarray, int, int]:
    """(G,) the cluster of each group, -1 for noise; parts that had several labels; groups that were joined."""
    groups, parts, certain = constraints.groups, constraints.parts, constraints.certain
    of_part, split = _most_frequent(labels, parts)
    owner = np.empty(len(of_part), np.int64)
    owner[parts] = groups
    if not certain.any():
        own = np.full(len(certain), -1)
        own[owner] = of_part
        return own, split, 0
    if offsets is None:
        rows, columns = _entries(graph)
        together = labels[rows] == labels[columns]
        offsets = -np.bincount(rows[together], weights=1 - graph.data[together], minlength=len(labels))
    places = np.full(len(of_part), np.inf)
    inside = np.flatnonzero((labels >= 0) & (labels == of_part[parts]))
    np.minimum.at(places, parts[inside], _places(labels, offsets)[inside])
    # Clusters and, after them, groups are nodes. A part links the two if it is central, or the most central of a group.
    order = np.lexsort((places, owner))
    first = np.zeros(len(places), bool)
    first[order[np.unique(owner[order], return_index=True)[1]]] = True
    linking = np.flatnonzero((of_part >= 0) & (first | (places < CENTRAL)))
    num_clusters = labels.max(initial=-1) + 1
    num_nodes = num_clusters + len(certain)
    ends = (of_part[linking], num_clusters + owner[linking])
    links = sparse.coo_array((np.ones(len(linking), bool), ends), shape=(num_nodes, num_nodes))
    component = csgraph.connected_components(links, directed=False)[1]
    clustered = certain.copy()
    clustered[owner[linking]] = True
    own = np.where(clustered, component[num_clusters:], -1)
    seen = np.unique(np.stack((owner, of_part), 1), axis=0)
    several = np.bincount(seen[:, 0], minlength=len(certain)) > 1
    several[owner[of_part < 0]] = True
    return own, split, int((several & certain).sum())


def _places(labels: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(N,) the share of the images of its cluster that are nearer to the centre than an image, in [0, 1)."""
    order = np.lexsort((offsets, labels))
    starts = np.diff(labels[order], prepend=-2) != 0
    changes = starts | (np.diff(offsets[order], prepend=-np.inf) != 0)
    positions = np.arange(len(labels))
    first, begin = (np.maximum.accumulate(np.where(mask, positions, 0)) for mask in (changes, starts))
    places = np.empty(len(labels))
    places[order] = (first - begin) / np.bincount(labels + 1)[labels[order] + 1]
    return places


def _most_frequent(labels: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, int]:
    """(G,) the most frequent cluster of each group, -1 if all are noise; and how many groups had several labels."""
    num_groups = groups.max(initial=-1) + 1
    pairs, counts = np.unique(np.stack((groups, labels), 1), axis=0, return_counts=True)
    split = int((np.bincount(pairs[:, 0], minlength=num_groups) > 1).sum())
    pairs, counts = pairs[pairs[:, 1] >= 0], counts[pairs[:, 1] >= 0]
    pairs = pairs[np.lexsort((pairs[:, 1], -counts, pairs[:, 0]))]
    present, best = np.unique(pairs[:, 0], return_index=True)
    own = np.full(num_groups, -1)
    own[present] = pairs[best, 1]
    return own, split


@njit(nogil=True, cache=True)
def _root(parent, node):
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@njit(nogil=True, cache=True)
def _join(one, other, first, second, num_groups):
    """Join groups along the edges, in their order, unless that joins two that are apart: (G,) a root for each.

    Each tree keeps a list of what is apart from it. When two trees join, the shorter list is renamed and put before the
    other, so that an entry is renamed at most log2(M) times.
    """
    parent = np.arange(num_groups)
    num_pairs = len(first)
    head = np.full(num_groups, -1)
    count = np.zeros(num_groups, np.int64)
    enemy = np.empty(2 * num_pairs, np.int64)
    after = np.empty(2 * num_pairs, np.int64)
    apart = {np.int64(-1)}  # both orders of each pair of roots, as one number
    for p in range(num_pairs):
        for place, here, there in ((2 * p, first[p], second[p]), (2 * p + 1, second[p], first[p])):
            enemy[place], after[place] = there, head[here]
            head[here] = place
            count[here] += 1
            apart.add(np.int64(here * num_groups + there))
    for e in range(len(one)):
        a, b = _root(parent, one[e]), _root(parent, other[e])
        if a == b or np.int64(a * num_groups + b) in apart:
            continue
        if count[a] < count[b]:
            a, b = b, a
        place, end = head[b], -1
        while place >= 0:
            there = _root(parent, enemy[place])
            apart.add(np.int64(a * num_groups + there))
            apart.add(np.int64(there * num_groups + a))
            place, end = after[place], place
        if end >= 0:
            after[end] = head[a]
            head[a] = head[b]
        count[a] += count[b]
        parent[b] = a
    roots = np.empty(num_groups, np.int64)
    for g in range(num_groups):
        roots[g] = _root(parent, g)
    return roots
