"""What a person should look at first: questions about a clustering, each a pair of images that show one person or two.

Letters: N images, D dimensions, C clusters, Q questions.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .constraints import Constraints
from .neighbors import k_nearest
from .proxies import centroids

NEAREST = 5  # other clusters that each cluster is compared with
STEPS = 5  # of 2-means within each cluster; more change hardly any image


def doubtful_pairs(
    features: Tensor, labels: Tensor, *, constraints: Constraints | None = None
) -> tuple[Tensor, Tensor]:
    """Questions to a person about a clustering, those whose answers are worth most first.

    A question is about two sets of images, and shows the medoid of each: the two halves of a cluster, which 2-means
    finds, or two whole clusters that are near. The answer is whether they are one person. What is asked is the margin
    of the pair: the average cosine between the images of the two sets, less their average cosine with the nearest third
    cluster, mean of both sets. Halves of low margin are probably two persons, and clusters of high margin one.

    The margins of all halves and of all pairs of clusters, each taken as a normal distribution of one variance, give
    the probability that the clustering is wrong about a pair. The doubt is this probability times the images of the
    smaller set: the number of images that the answer moves, on average.

    Args:
        features: (N, D) floating point, unit rows. Standardise them within cameras first if the clustering did.
        labels: (N,) int64, clusters 0..C-1 without gaps, -1 for noise, about which nothing is asked.
        constraints: what is known already of the N images, and kept by the labels; nothing is asked that follows.

    Returns:
        ``pairs`` (Q, 2) int64, image indices, and ``doubt`` (Q,) float, above 0, highest first. Both images of a pair
        have one label (are they two persons?), or two labels (are they one?). Q is at most 6 C.

    Raises:
        ValueError: for shapes that do not match, or labels with gaps.

    Time is O(N D) and one search for neighbours among C centroids; memory is linear.
    """
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"features must be (N, D) and labels (N,), got {tuple(features.shape)} and {tuple(labels.shape)}"
        )
    clustered = (labels >= 0).nonzero()[:, 0]
    if not len(clustered):
        return labels.new_empty(0, 2), features.new_empty(0)
    units, own = F.normalize(features[clustered]), labels[clustered]
    halves = 2 * own + _second_half(units, own)
    num_clusters = int(own.max()) + 1
    means = centroids(units, own)
    sums = units.new_zeros(2 * num_clusters, units.shape[1]).index_add(0, halves, units)
    sizes = torch.bincount(halves, minlength=2 * num_clusters)
    half_means = (sums / sizes.clamp(min=1)[:, None]).view(num_clusters, 2, -1)
    near = _near_clusters(means)

    first, second = _distinct_pairs(near)
    divided = (sizes.view(-1, 2) > 0).all(1).nonzero()[:, 0]
    margins = torch.cat((_margins_of_halves(half_means, means, near)[divided], _margins(means, near, first, second)))
    of_cluster = sizes.view(-1, 2).sum(1)
    moved = torch.cat((sizes.view(-1, 2).amin(1)[divided], torch.minimum(of_cluster[first], of_cluster[second])))
    doubt = _wrong(margins, len(divided)) * moved

    of_half, of_whole = _medoids(units, half_means.flatten(0, 1), halves), _medoids(units, means, own)
    pairs = torch.cat((of_half.view(-1, 2)[divided], torch.stack((of_whole[first], of_whole[second]), 1)))
    open_ = torch.ones(len(pairs), dtype=torch.bool, device=pairs.device)
    if constraints is not None:
        groups = torch.from_numpy(constraints.groups).to(pairs.device)[clustered]
        open_[: len(divided)] = ~_share_a_group(halves, groups, num_clusters)[divided]
        open_[len(divided) :] = ~_apart(constraints, own, groups, first, second)
    order = doubt.argsort(descending=True, stable=True)
    order = order[open_[order]]
    return clustered[pairs[order]], doubt[order]


def _second_half(units: Tensor, labels: Tensor) -> Tensor:
    """(N,) 0 or 1, by spherical 2-means within each cluster, from two images that are far from each other."""
    poles = F.normalize(centroids(units, labels))
    one = units[_first_of_each((units * poles[labels]).sum(1), labels)]
    other = units[_first_of_each((units * one[labels]).sum(1), labels)]
    for _ in range(STEPS):
        second = ((units * other[labels]).sum(1) > (units * one[labels]).sum(1)).long()
        sums = units.new_zeros(2 * len(poles), units.shape[1]).index_add(0, 2 * labels + second, units)
        one, other = F.normalize(sums).view(len(poles), 2, -1).unbind(1)
    return second


def _first_of_each(values: Tensor, labels: Tensor) -> Tensor:
    """(C,) the index of the smallest of the (N,) ``values`` in each cluster."""
    order = values.argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]
    sizes = torch.bincount(labels)
    return order[sizes.cumsum(0) - sizes]


def _medoids(units: Tensor, means: Tensor, labels: Tensor) -> Tensor:
    """(C,) the image nearest to the mean of each set; any number for a set without images, as a half can be."""
    present, codes = labels.unique(return_inverse=True)
    medoids = labels.new_zeros(len(means))
    medoids[present] = _first_of_each(-(units * means[labels]).sum(1), codes)
    return medoids


def _near_clusters(means: Tensor) -> Tensor:
    """(C, K) the nearest other clusters, K up to ``NEAREST``."""
    wanted = min(NEAREST + 1, len(means))
    return k_nearest(F.normalize(means), wanted)[1][:, 1:].to(means.device).long()


def _distinct_pairs(near: Tensor) -> tuple[Tensor, Tensor]:
    """The two clusters of each pair, of which one is near the other; each pair once."""
    one = torch.arange(len(near), device=near.device)[:, None].expand_as(near)
    pairs = torch.stack((torch.minimum(one, near), torch.maximum(one, near)), -1).view(-1, 2).unique(dim=0)
    return pairs[:, 0], pairs[:, 1]


def _margins_of_halves(half_means: Tensor, means: Tensor, near: Tensor) -> Tensor:
    third = torch.einsum("chd,ckd->chk", half_means, means[near])
    return (half_means[:, 0] * half_means[:, 1]).sum(1) - _highest(third).mean(1)


def _margins(means: Tensor, near: Tensor, first: Tensor, second: Tensor) -> Tensor:
    cosines = torch.einsum("cd,ckd->ck", means, means[near])
    third = [
        _highest(cosines[one].masked_fill(near[one] == other[:, None], -1))
        for one, other in ((first, second), (second, first))
    ]
    return (means[first] * means[second]).sum(1) - (third[0] + third[1]) / 2


def _highest(cosines: Tensor) -> Tensor:
    """The highest in the last dimension; 0, as of strangers, if there is no third cluster."""
    highest = cosines.amax(-1) if cosines.shape[-1] else cosines.new_full(cosines.shape[:-1], -1)
    return highest.where(highest > -1, 0)


def _wrong(margins: Tensor, num_together: int) -> Tensor:
    """(Q,) the probability that the clustering is wrong, if the first ``num_together`` pairs are in one cluster.

    That of a pair with such a margin to be of the other kind (linear discriminant analysis).
    """
    together, apart = margins[:num_together], margins[num_together:]
    if not len(together) or not len(apart):
        return torch.full_like(margins, 0.5)
    middle = (together.mean() + apart.mean()) / 2
    variance = torch.cat((together - together.mean(), apart - apart.mean())).square().mean().clamp(min=1e-6)
    slope = (together.mean() - apart.mean()).clamp(min=0) / variance
    logits = (margins - middle) * slope + np.log(len(together) / len(apart))
    return torch.cat((-logits[:num_together], logits[num_together:])).sigmoid()


def _share_a_group(halves: Tensor, groups: Tensor, num_clusters: int) -> Tensor:
    """(C,) whether images of both halves of a cluster are known to be one person."""
    seen = torch.stack((halves, groups), 1).unique(dim=0)
    both = torch.stack((seen[:, 0] // 2, seen[:, 1]), 1).unique(dim=0, return_counts=True)
    found = torch.zeros(num_clusters, dtype=torch.bool, device=halves.device)
    found[both[0][both[1] > 1][:, 0]] = True
    return found


def _apart(constraints: Constraints, labels: Tensor, groups: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """(Q,) whether images of two clusters are known to be two persons."""
    of_group = np.full(constraints.groups.max(initial=-1) + 1, -1)
    of_group[groups.cpu().numpy()] = labels.cpu().numpy()
    known = np.sort(of_group[constraints.apart], axis=1)
    wide = int(labels.max()) + 1
    asked = (first * wide + second).cpu().numpy()  # first < second
    known = known[known[:, 0] >= 0]
    return torch.from_numpy(np.isin(asked, known[:, 0] * wide + known[:, 1])).to(first.device)
