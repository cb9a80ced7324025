"""A person's corrections as constraints, alone and together with those of tracks. They are certain; tracks are not.

Letters: N images, S and M pairs, G groups.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from .constraints import Constraints


def correction_constraints(
    num_images: int, *, same: np.ndarray, different: np.ndarray, names: np.ndarray, nobody: np.ndarray
) -> Constraints:
    """What a person has said about images.

    Args:
        num_images: N.
        same: (S, 2) integers, pairs of images that are one person.
        different: (M, 2) integers, pairs of images that are two.
        names: (N,) integers, the person that an image shows, -1 where it has no name. Equal names are one person, and
            different ones are two, so P names give P (P - 1) / 2 forbidden pairs.
        nobody: (N,) bool, images that show no person.

    Raises:
        ValueError: two images are one person and two, or one of several images of a person shows nobody.

    Time and memory are O(N log N + S + M + P^2).
    """
    named = np.flatnonzero(names >= 0)
    groups = _components(
        num_images, np.concatenate((same, np.stack((named, num_images + names[named]), 1))).astype(np.int64)
    )
    certain = np.bincount(groups, minlength=groups.max(initial=-1) + 1) > 1
    people = np.unique(groups[named])
    one, other = np.triu_indices(len(people), 1)
    apart = _pairs(np.concatenate((groups[different].reshape(-1, 2), np.stack((people[one], people[other]), 1))))
    twice = np.unique(np.stack((groups[named], names[named]), 1), axis=0)[:, 0]
    if (apart[:, 0] == apart[:, 1]).any() or len(np.unique(twice)) < len(twice):
        raise ValueError("two images are said to be one person and two")
    if (certain[groups] & nobody).any():
        raise ValueError("one of several images of a person is said to show nobody")
    return Constraints(groups, apart, np.arange(num_images), certain, np.asarray(nobody, bool))


def combine_constraints(tracks: Constraints, corrections: Constraints) -> tuple[Constraints, int]:
    """What tracks say and what a person says; where they contradict each other, the person is right.

    A track whose images a person has said to be two persons, itself or together with other tracks, is none any more. A
    forbidden pair of tracks whose images a person has linked is dropped. An image that shows nobody leaves its track.

    Args:
        tracks: of N images, from ``track_constraints``.
        corrections: of the same images, from ``correction_constraints``.

    Returns:
        The constraints, and the number of tracks and of forbidden pairs that were overruled.

    Time and memory are O(N log N + M).
    """
    said, num_images = corrections.groups, len(corrections.groups)
    images = np.arange(num_images)
    tracked = ~corrections.nobody
    parts = np.where(tracked, tracks.groups, len(tracks.certain) + images)

    def groups_of(parts: np.ndarray) -> np.ndarray:
        owners = num_images + np.unique(parts, return_inverse=True)[1]
        return _components(num_images, np.concatenate((np.stack((images, owners), 1), _chain(said))))

    groups = groups_of(parts)
    one, other = (_first_images(said)[side] for side in corrections.apart.T)
    contradicted = np.unique(groups[one[groups[one] == groups[other]]])
    overruled = 0
    if len(contradicted):
        # Of the tracks there, those that link what a person has spoken of.
        spoken = corrections.certain.copy()
        spoken[corrections.apart] = True
        linked = np.unique(np.stack((parts, said), 1)[spoken[said] & np.isin(groups, contradicted)], axis=0)[:, 0]
        numbers, counts = np.unique(linked, return_counts=True)
        wrong = numbers[counts > 1]
        overruled = len(wrong)
        parts = np.where(np.isin(parts, wrong), len(tracks.certain) + images, parts)
        groups = groups_of(parts)

    # A track that is left has images in one group only.
    of_track = np.full(len(tracks.certain), -1)
    whole = parts == tracks.groups
    of_track[tracks.groups[whole]] = groups[whole]
    at_once = of_track[tracks.apart]
    at_once = at_once[(at_once >= 0).all(1)]
    refuted = at_once[:, 0] == at_once[:, 1]
    apart = _pairs(np.concatenate((at_once[~refuted], np.stack((groups[one], groups[other]), 1))))
    certain = np.zeros(groups.max(initial=-1) + 1, bool)
    certain[groups[corrections.certain[said]]] = True
    kept = Constraints(groups, apart, np.unique(parts, return_inverse=True)[1], certain, corrections.nobody)
    return kept, overruled + int(refuted.sum())


def _components(num_images: int, links: np.ndarray) -> np.ndarray:
    """(N,) int64 the component of each image, without gaps; further nodes of ``links`` (L, 2) only connect."""
    num_nodes = max(num_images, links.max(initial=-1) + 1)
    graph = sparse.coo_array((np.ones(len(links), bool), tuple(links.T)), shape=(num_nodes, num_nodes))
    components = csgraph.connected_components(graph, directed=False)[1][:num_images]
    return np.unique(components, return_inverse=True)[1].astype(np.int64)


def _chain(groups: np.ndarray) -> np.ndarray:
    """(L, 2) links between images that connect each group."""
    order = groups.argsort(kind="stable")
    follows = np.flatnonzero(np.diff(groups[order]) == 0)
    return np.stack((order[follows], order[follows + 1]), 1)


def _first_images(groups: np.ndarray) -> np.ndarray:
    """(G,) the first image of each group."""
    return np.unique(groups, return_index=True)[1]


def _pairs(pairs: np.ndarray) -> np.ndarray:
    """Each pair once, the smaller number first, in ascending order."""
    return np.unique(np.sort(pairs, axis=1), axis=0)
