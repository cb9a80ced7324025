"""Every loss as a pure function of tensors; each returns an unweighted scalar.

Letters: B batch, D dimensions, C clusters, P camera proxies, M proxies per cluster, K instances per cluster.
n(x) = x / max(||x||, 1e-12), row by row. Everything is computed in the precision of the first argument, or in what
autocast chooses. Labels are not checked to lie in [0, C): reading their values would make the host wait for the GPU.

References
[ICE] Chen, Lagadec, Bremond, "ICE: Inter-instance Contrastive Encoding for Unsupervised Person Re-identification",
    ICCV 2021, sec. 3.
[DCMIP] Zou, Chen, Cui, Liu, Zhang, "Discrepant and Multi-Instance Proxies for Unsupervised Person Re-Identification",
    ICCV 2023.
[CAP] Wang et al., "Camera-aware Proxies for Unsupervised Person Re-Identification", AAAI 2021.
[O2CAP] Wang, Li, Lai, Gong, Hua, "Offline-Online Associated Camera-Aware Proxies for Unsupervised Person
    Re-Identification", IEEE TIP 2022.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def cluster_proxy_loss(
    features: Tensor, proxies: Tensor, labels: Tensor, *, temperature: float = 0.5, label_smoothing: float = 0.1
) -> Tensor:
    """Label-smoothed softmax cross-entropy over the cluster proxies ([ICE], camera-agnostic proxy loss).

    Mean over i of CE_smooth(f_i . p_k / temperature, y_i). Nothing is normalised: the temperature was chosen for the
    raw output of the batch-norm neck, whose norm is about sqrt(D).

    Args:
        features: (B, D) raw features.
        proxies: (C, D) cluster means, used as given.
        labels: (B,) int64 in [0, C); or soft labels, (B, C) probabilities.
        temperature: above 0.
        label_smoothing: probability spread evenly over all C clusters, in [0, 1].

    Raises:
        ValueError: for shapes that do not match, an empty batch, or a temperature that is not positive.
    """
    _check(temperature, features=features, labels=labels[:, 0] if labels.dim() == 2 else labels)
    _check_proxies(features, proxies=proxies, shape="(C, D)")
    logits = features @ proxies.to(features.dtype).T / temperature
    if labels.dim() == 2 and labels.shape != logits.shape:
        raise ValueError(f"soft labels must be (B, C) = {tuple(logits.shape)}, got {tuple(labels.shape)}")
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def cross_camera_loss(
    features: Tensor,
    labels: Tensor,
    cameras: Tensor,
    proxies: Tensor,
    proxy_labels: Tensor,
    *,
    temperature: float = 0.07,
    num_negatives: int = 50,
    proxy_cameras: Tensor | None = None,
) -> Tensor:
    """Contrast the proxies of the own cluster with the nearest ones of others ([ICE], cross-camera loss, from [CAP]).

    Softmax over the anchor's positives and its ``num_negatives`` most similar negatives (all of them where fewer
    exist); cross-entropy with a target spread evenly over the positives. Mean over the anchors of each camera, then the
    *sum* over the cameras of the batch.

    Args:
        features: (B, D), normalised here.
        labels: (B,) int64, each with at least one proxy.
        cameras: (B,) int64.
        proxies: (P, D), used as given.
        proxy_labels: (P,) int64.
        temperature: above 0.
        num_negatives: at least 1.
        proxy_cameras: (P,) int64. When given, the anchor's own-camera proxy is left out, neither positive nor negative,
            unless it is the only proxy of its cluster; otherwise it is a positive like the others.

    Raises:
        ValueError: for shapes that do not match, an empty batch, or a parameter out of range.

    Memory O(B P).
    """
    _check(temperature, features=features, labels=labels, cameras=cameras)
    _check_proxies(features, proxies=proxies, shape="(P, D)")
    _check_aligned(proxies, proxy_labels=proxy_labels, proxy_cameras=proxy_cameras)
    if num_negatives < 1:
        raise ValueError(f"num_negatives must be at least 1, got {num_negatives}")

    similarities = F.normalize(features) @ proxies.to(features.dtype).T
    own = labels[:, None] == proxy_labels
    positives = own
    if proxy_cameras is not None:
        elsewhere = own & (cameras[:, None] != proxy_cameras)
        positives = torch.where(elsewhere.any(1, keepdim=True), elsewhere, own)
    negatives = similarities.masked_fill(own, -torch.inf).topk(min(num_negatives, len(proxies))).values

    logits = torch.cat((similarities.masked_fill(~positives, -torch.inf), negatives), 1) / temperature
    log_probabilities = F.log_softmax(logits, 1)[:, : len(proxies)]
    losses = -log_probabilities.masked_fill(~positives, 0).sum(1) / positives.sum(1)
    return _sum_of_camera_means(losses, cameras)


def online_proxy_loss(
    features: Tensor,
    labels: Tensor,
    cameras: Tensor,
    proxies: Tensor,
    proxy_labels: Tensor,
    proxy_cameras: Tensor,
    *,
    temperature: float = 0.07,
    num_negatives: int = 50,
    num_positives: int = 3,
    balance: float = 0.15,
) -> Tensor:
    """Contrast the proxies that currently resemble the anchor most with the next ones, whatever their labels ([O2CAP]).

    Proxies are ranked by r = ``balance`` s + (1 - ``balance``) s_own, where s is their cosine with the anchor and s_own
    their cosine with the anchor's own proxy, that of its label and camera. The best proxy of each camera is a
    candidate. The ``num_positives`` best candidates are positives; of all other proxies the ``num_negatives`` best are
    negatives, including those of the anchor's label. Softmax over both by s; cross-entropy with a target spread evenly
    over the positives. Mean over the anchors of each camera, then the *sum* over the cameras of the batch. The offline
    loss of the paper is ``cross_camera_loss`` with a weight of 1.

    If fewer cameras have proxies than ``num_positives``, or fewer proxies are left than ``num_negatives``, all of them
    are taken. In these cases the published code takes a negative for a positive, or fails.

    Args:
        features: (B, D), normalised here.
        labels: (B,) int64.
        cameras: (B,) int64; each pair of label and camera has a proxy.
        proxies: (P, D), used as given.
        proxy_labels: (P,) int64.
        proxy_cameras: (P,) int64, in any order.
        temperature: above 0.
        num_negatives: at least 1.
        num_positives: at least 1.
        balance: weight of the anchor itself in the ranking, in [0, 1].

    Raises:
        ValueError: for shapes that do not match, an empty batch, or a parameter out of range.

    Memory O(B P).
    """
    _check(temperature, features=features, labels=labels, cameras=cameras)
    _check_proxies(features, proxies=proxies, shape="(P, D)")
    _check_aligned(proxies, proxy_labels=proxy_labels, proxy_cameras=proxy_cameras)
    for name, number in (("num_negatives", num_negatives), ("num_positives", num_positives)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if not 0 <= balance <= 1:
        raise ValueError(f"balance must lie in [0, 1], got {balance}")

    proxies = proxies.to(features.dtype)
    similarities = F.normalize(features) @ proxies.T
    with torch.no_grad():
        same = (labels[:, None] == proxy_labels) & (cameras[:, None] == proxy_cameras)
        own = proxies[same.int().argmax(1)]
        ranking = balance * similarities + (1 - balance) * (own @ proxies.T).to(similarities.dtype)
        candidates = _best_of_each_camera(ranking, proxy_cameras)
        best = ranking.masked_fill(~candidates, -torch.inf).topk(min(num_positives, len(proxies))).indices
        positives = torch.zeros_like(candidates).scatter(1, best, True) & candidates
        rest = ranking.masked_fill(positives, -torch.inf).topk(min(num_negatives, len(proxies))).indices
        chosen = positives.scatter(1, rest, True)
    # If fewer proxies are left than negatives are asked for, ``rest`` also holds positives, which count once.
    log_probabilities = F.log_softmax((similarities / temperature).masked_fill(~chosen, -torch.inf), 1)
    losses = -log_probabilities.masked_fill(~positives, 0).sum(1) / positives.sum(1)
    return _sum_of_camera_means(losses, cameras)


def hard_instance_loss(queries: Tensor, keys: Tensor, labels: Tensor, *, temperature: float = 0.1) -> Tensor:
    """InfoNCE of each query with its hardest positive and all negative keys ([ICE], hard instance contrast).

    The positive is the *least* similar key of the same label, including the query's own second view; the negatives are
    all keys of other labels. Labels may be unevenly represented. With a single label the loss is zero and still
    back-propagates.

    Args:
        queries: (B, D), normalised here.
        keys: (B, D), normalised here; key i is another view of image i.
        labels: (B,) int64.
        temperature: above 0.

    Raises:
        ValueError: for shapes that do not match, an empty batch, or a temperature that is not positive.
    """
    _check(temperature, queries=queries, labels=labels)
    _check_same_shape(queries, keys=keys)
    similarities = _cosine(queries, keys)
    same = labels[:, None] == labels
    hardest = similarities.masked_fill(~same, torch.inf).amin(1, keepdim=True)
    logits = torch.cat((hardest, similarities.masked_fill(same, -torch.inf)), 1) / temperature
    return F.cross_entropy(logits, torch.zeros_like(labels))


def soft_consistency_loss(queries: Tensor, keys: Tensor, weak_keys: Tensor, *, temperature: float = 0.4) -> Tensor:
    """Make similarities between strong views match those between weak views ([ICE], soft instance consistency).

    Mean over i of KL(Q_i || P_i), where P_i = softmax_j(n(q_i) . n(k_j) / temperature) and
    Q_i = softmax_j(n(w_i) . n(w_j) / temperature), j = i included. Q is constant: no gradient reaches ``weak_keys``.

    Args:
        queries: (B, D), normalised here.
        keys: (B, D), normalised here.
        weak_keys: (B, D), normalised here; momentum features of the un-augmented images.
        temperature: above 0.

    Raises:
        ValueError: for shapes that do not match, an empty batch, or a temperature that is not positive.
    """
    _check(temperature, queries=queries)
    _check_same_shape(queries, keys=keys, weak_keys=weak_keys)
    weak_keys = weak_keys.detach().to(queries.dtype)
    prediction = F.log_softmax(_cosine(queries, keys) / temperature, 1)
    target = F.log_softmax(_cosine(weak_keys, weak_keys) / temperature, 1)
    return F.kl_div(prediction, target, reduction="batchmean", log_target=True)


def discrepant_proxy_loss(
    queries: Tensor,
    proxies: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.05,
    margins: Sequence[float] | None = None,
) -> Tensor:
    """Softmax cross-entropy over each of M proxy sets, averaged ([DCMIP], L_DCP; M = 1 is Cluster Contrast).

    Mean over m of max(CE_m - margin_m, 0), where CE_m is the batch mean of CE(n(q) . P_m / temperature, y). Below its
    margin a proxy set gives no gradient.

    Args:
        queries: (B, D), normalised here.
        proxies: (M, C, D), used as given.
        labels: (B,) int64 in [0, C).
        temperature: above 0.
        margins: one per proxy set, all 0 by default.

    Raises:
        ValueError: for shapes that do not match, an empty batch, or a temperature that is not positive.
    """
    _check(temperature, queries=queries, labels=labels)
    _check_proxies(queries, proxies=proxies, shape="(M, C, D)")
    num_sets = len(proxies)
    if margins is not None and len(margins) != num_sets:
        raise ValueError(f"margins must hold one value for each of the {num_sets} proxy sets, got {len(margins)}")

    logits = F.normalize(queries) @ proxies.to(queries.dtype).transpose(1, 2) / temperature  # (M, B, C)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(num_sets), reduction="none")
    losses = losses.unflatten(0, (num_sets, -1)).mean(1)
    if margins is not None:
        # One by one, since a tensor of the margins would have to be copied to the device at every step.
        losses = torch.stack([(loss - margin).clamp(min=0) for loss, margin in zip(losses, margins, strict=True)])
    return losses.mean()


def multi_instance_loss(
    queries: Tensor,
    bank: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.05,
    positives: Tensor | None = None,
) -> Tensor:
    """Softmax cross-entropy over clusters that each hold K instances ([DCMIP], L_MIP).

    The logit of another cluster is its *most* similar instance. That of the own cluster is the *least* similar
    positive: one of its instances in the bank or, if ``positives`` is given, one of the batch's momentum features.

    Args:
        queries: (B, D), normalised here.
        bank: (C, K, D), used as given.
        labels: (B,) int64 in [0, C).
        temperature: above 0.
        positives: (B, D), normalised here; row i is a momentum feature of image i, positive for all queries of its
            label.

    Raises:
        ValueError: for shapes that do not match, an empty batch, or a temperature that is not positive.

    Memory O(B C K).
    """
    _check(temperature, queries=queries, labels=labels)
    _check_proxies(queries, bank=bank, shape="(C, K, D)")
    similarities = F.normalize(queries) @ bank.to(queries.dtype).flatten(0, 1).T
    similarities = similarities.unflatten(1, bank.shape[:2])  # (B, C, K)
    if positives is None:
        hardest = similarities.amin(2)
    else:
        _check_same_shape(queries, positives=positives)
        same = labels[:, None] == labels
        hardest = _cosine(queries, positives).masked_fill(~same, torch.inf).amin(1, keepdim=True)
    own = labels[:, None] == torch.arange(len(bank), device=labels.device)
    logits = torch.where(own, hardest, similarities.amax(2)) / temperature
    return F.cross_entropy(logits, labels)


def _best_of_each_camera(ranking: Tensor, proxy_cameras: Tensor) -> Tensor:
    """(B, P) bool, the highest entry of each row among the proxies of each camera; of equal ones the first."""
    # The cameras are numbered by one sort of the proxies: to ask how many there are would wait for the device.
    ordered, order = proxy_cameras.sort()
    numbers = F.pad(ordered[1:] != ordered[:-1], (1, 0)).cumsum(0)
    camera = torch.empty_like(order).scatter(0, order, numbers).expand_as(ranking)
    best = torch.full_like(ranking, -torch.inf).scatter_reduce(1, camera, ranking, "amax").gather(1, camera)
    num_proxies = len(proxy_cameras)
    place = torch.arange(num_proxies, device=ranking.device).where(ranking == best, num_proxies)
    first = torch.full_like(place, num_proxies).scatter_reduce(1, camera, place, "amin").gather(1, camera)
    return place == first


def _sum_of_camera_means(losses: Tensor, cameras: Tensor) -> Tensor:
    camera_sizes = (cameras[:, None] == cameras).sum(1)
    return (losses / camera_sizes).sum()


def _cosine(queries: Tensor, keys: Tensor) -> Tensor:
    return F.normalize(queries) @ F.normalize(keys.to(queries.dtype)).T


def _check(temperature: float, **batch: Tensor) -> None:
    """The first argument of ``batch`` is its features, (B, D) and not empty; the others are aligned with them."""
    (name, features), *others = batch.items()
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if features.dim() != 2 or len(features) == 0:
        raise ValueError(f"{name} must be (B, D) with at least one row, got shape {tuple(features.shape)}")
    _check_aligned(features, **dict(others))


def _check_aligned(rows: Tensor, **vectors: Tensor | None) -> None:
    for name, vector in vectors.items():
        if vector is not None and vector.shape != rows.shape[:1]:
            raise ValueError(f"{name} must have shape ({len(rows)},), one entry per row, got {tuple(vector.shape)}")


def _check_same_shape(queries: Tensor, **views: Tensor) -> None:
    for name, view in views.items():
        if view.shape != queries.shape:
            raise ValueError(f"{name} must have the shape of queries, {tuple(queries.shape)}, got {tuple(view.shape)}")


def _check_proxies(features: Tensor, *, shape: str, **memory: Tensor) -> None:
    ((name, proxies),) = memory.items()
    if proxies.dim() != shape.count(",") + 1 or proxies.shape[-1] != features.shape[1] or proxies.numel() == 0:
        raise ValueError(f"{name} must be {shape} with D = {features.shape[1]}, not empty, got {tuple(proxies.shape)}")
