"""Class proxies: how they are built from a clustering, and how a batch updates them.

Letters: N images, D dimensions, C clusters, P camera proxies, B batch, K instances per cluster.
n(x) = x / max(||x||, 1e-12), row by row. Images labelled -1 (noise) are ignored throughout.

An update design is a function ``(proxies, features, labels, *, momentum) -> updated proxies``. It normalises the
features, does not change its inputs or the proxies of absent clusters, and keeps no gradient. Momentum is the weight of
the *old* proxy: P <- n(momentum P + (1 - momentum) incoming).

References
[ICE] Chen et al., "ICE: Inter-instance Contrastive Encoding for Unsupervised Person Re-identification", ICCV 2021.
[DCMIP] Zou et al., "Discrepant and Multi-Instance Proxies for Unsupervised Person Re-Identification", ICCV 2023.
[CC] Dai et al., "Cluster Contrast for Unsupervised Person Re-Identification", 2021.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def centroids(features: Tensor, labels: Tensor) -> Tensor:
    """Mean feature of each cluster, not normalised ([ICE], camera-agnostic loss).

    Args:
        features: (N, D) floating point.
        labels: (N,) int64, clusters 0..C-1 without gaps, -1 for noise.

    Returns:
        (C, D); no rows if every image is noise.

    Raises:
        ValueError: for shapes that do not match, or a cluster without images.
    """
    features, labels = _clustered(features, labels)
    counts = torch.bincount(labels)
    if not counts.all():
        raise ValueError(
            f"labels must be 0..C-1 without gaps, but no image has label {int((counts == 0).int().argmax())}"
        )
    return features.new_zeros(len(counts), features.shape[1]).index_add(0, labels, features) / counts[:, None]


def camera_centroids(features: Tensor, labels: Tensor, cameras: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised mean feature of each cluster within each of its cameras ([ICE], cross-camera loss).

    Args:
        features: (N, D) floating point.
        labels: (N,) int64, cluster of each image, -1 for noise.
        cameras: (N,) int64, any integers.

    Returns:
        ``proxies`` (P, D) unit rows, ``proxy_labels`` (P,) and ``proxy_cameras`` (P,), ordered by camera, then label.

    Raises:
        ValueError: for shapes that do not match.
    """
    if cameras.shape != labels.shape:
        raise ValueError(f"cameras must have the shape of labels, {tuple(labels.shape)}, got {tuple(cameras.shape)}")
    cameras = cameras[labels >= 0]
    features, labels = _clustered(features, labels)
    pairs, members = torch.stack((cameras, labels), 1).unique(dim=0, return_inverse=True)
    proxy_cameras, proxy_labels = pairs.unbind(1)
    return F.normalize(centroids(features, members)), proxy_labels, proxy_cameras


def draw_instances(
    labels: Tensor, num_instances: int, *, repetition: str = "needed", generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw K random members of each cluster to represent it ([DCMIP], multi-instance proxies).

    With ``repetition`` "needed", a cluster of K members or more gives K different ones, and a smaller cluster gives all
    of its members, repeated as evenly as possible. With "always", each draw is independent.

    Args:
        labels: (N,) int64, cluster of each row, gaps allowed; -1 for noise.
        num_instances: K, at least 1.
        repetition: "needed" or "always".
        generator: on the device of ``labels``; by default torch's global one.

    Returns:
        ``clusters`` (C,), the labels that have members, ascending; and ``members`` (C, K), positions in ``labels``.

    Raises:
        ValueError: for ``num_instances`` below 1, or another ``repetition``.
    """
    if num_instances < 1:
        raise ValueError(f"num_instances must be at least 1, got {num_instances}")
    if repetition not in ("needed", "always"):
        raise ValueError(f"repetition {repetition!r} must be 'needed' or 'always'")
    order = torch.randperm(len(labels), generator=generator, device=labels.device)
    order = order[labels[order] >= 0]
    order = order[labels[order].argsort(stable=True)]  # by cluster, at random within it
    clusters, counts = labels[order].unique_consecutive(return_counts=True)
    if repetition == "needed":
        places = torch.arange(num_instances, device=labels.device) % counts[:, None]
    else:
        draws = torch.rand(len(counts), num_instances, generator=generator, device=labels.device, dtype=torch.float64)
        places = (draws * counts[:, None]).long()
    return clusters, order[(counts.cumsum(0) - counts)[:, None] + places]


def draw_batch_instances(labels: Tensor, num_instances: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw as ``draw_instances`` does, for each row of a batch, without making the host wait for the device.

    Args:
        labels: (B,) int64, cluster of each row.
        num_instances: K, at least 1.
        generator: on the device of ``labels``; by default torch's global one.

    Returns:
        (B, K) positions in ``labels``: K members of the row's cluster, the same for all rows of a cluster.
    """
    order = torch.randperm(len(labels), generator=generator, device=labels.device)
    order = order[labels[order].argsort(stable=True)]  # by cluster, at random within it
    clusters = labels[order]
    first = torch.searchsorted(clusters, labels)
    counts = torch.searchsorted(clusters, labels, right=True) - first
    places = torch.arange(num_instances, device=labels.device) % counts[:, None]
    return order[first[:, None] + places]


@torch.no_grad()
def update_hardest(proxies: Tensor, features: Tensor, labels: Tensor, *, momentum: float) -> Tensor:
    """Move each proxy towards its least similar batch member, of equal ones the first ([DCMIP], "hardest").

    Args:
        proxies: (C, D) unit rows.
        features: (B, D), any row norm.
        labels: (B,) int64 in [0, C), or -1.
        momentum: weight of the old proxy, in [0, 1].

    Returns:
        (C, D) updated proxies, unit rows.

    Raises:
        ValueError: for shapes that do not match or a momentum out of range.
    """
    features = _incoming(proxies, features, labels, momentum)
    if len(labels) == 0:
        return proxies.clone()
    similarities = (features * proxies[labels]).sum(1)
    hardest = similarities.where(_members(labels), torch.inf).argmin(1)  # (B,), the same in all rows of a cluster
    return _write(proxies, labels, _blend(proxies[labels], features[hardest], momentum))


@torch.no_grad()
def update_mean(proxies: Tensor, features: Tensor, labels: Tensor, *, momentum: float) -> Tensor:
    """Move each proxy towards the mean of its normalised members ([DCMIP], "mean"). See ``update_hardest``."""
    features = _incoming(proxies, features, labels, momentum)
    if len(labels) == 0:
        return proxies.clone()
    members = _members(labels)
    means = members.to(features.dtype) @ features / members.sum(1, keepdim=True)
    first = members.int().argmax(1)  # one row represents its cluster: others may differ in the last bit
    return _write(proxies, labels, _blend(proxies[labels], means[first], momentum))


@torch.no_grad()
def update_each(proxies: Tensor, features: Tensor, labels: Tensor, *, momentum: float) -> Tensor:
    """Move each proxy towards each of its batch members in turn, in batch order ([CC]; [DCMIP], "each").

    See ``update_hardest``. The updates of a cluster are sequential by definition; in each turn all clusters take one
    step. The last member has the weight (1 - momentum), so batch order matters. The host waits for the device once, for
    the number of turns.
    """
    features = _incoming(proxies, features, labels, momentum)
    turn = _members(labels).tril(-1).sum(1)  # how many members of the same cluster come before
    padded, slots = _padded(proxies, labels)
    for now in range(int(turn.max()) + 1 if len(turn) else 0):
        moved = _blend(padded[slots], features, momentum)
        padded.index_copy_(0, slots.where(turn == now, len(proxies)), moved)
    return padded[:-1]


def _members(labels: Tensor) -> Tensor:
    """(B, B) bool, whether two rows of a batch belong to the same cluster."""
    return labels[:, None] == labels


def _write(proxies: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    """A copy of ``proxies`` with ``rows`` (B, D), equal for equal labels, at ``labels`` (B,); -1 is left out."""
    padded, slots = _padded(proxies, labels)
    return padded.index_copy_(0, slots, rows)[:-1]


def _padded(proxies: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A copy of ``proxies`` with an additional last row, and the row of each label: the last one for -1.

    Selecting the labelled rows instead would make the host wait for the device.
    """
    padded = torch.cat((proxies, proxies[:1]))
    return padded, labels % len(padded)


def _blend(proxies: Tensor, incoming: Tensor, momentum: float) -> Tensor:
    return F.normalize(momentum * proxies + (1 - momentum) * incoming)


def _incoming(proxies: Tensor, features: Tensor, labels: Tensor, momentum: float) -> Tensor:
    """The features of a batch, normalised, in the precision of the proxies."""
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
    if proxies.dim() != 2 or features.dim() != 2 or proxies.shape[1] != features.shape[1]:
        raise ValueError(
            f"proxies (C, D) and features (B, D) must share D, got {tuple(proxies.shape)} and {tuple(features.shape)}"
        )
    _check_labels(features, labels)
    return F.normalize(features.to(proxies.dtype))


def _clustered(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that belong to a cluster, and their labels."""
    _check_labels(features, labels)
    clustered = labels >= 0
    return features[clustered], labels[clustered]


def _check_labels(features: Tensor, labels: Tensor) -> None:
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"labels must hold one entry per row of features (N, D), got shape {tuple(labels.shape)} "
            f"for features of shape {tuple(features.shape)}"
        )
