"""Clusters and steps for the checks of losses, and functions that run a loss on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from fastreid.utils.env import seed_all_rng
from torch import Tensor

from ..core import Clusters, ImageTable
from ..losses import LossTerm, Step
from .checks import require

VIEWS = ("online", "momentum", "momentum_weak")
Factory = Callable[..., LossTerm]


def clusters_of(labels: Tensor, cameras: Tensor, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Clusters:
    """Clusters with these labels and cameras and random unit features (N, 8)."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(labels), 8, dtype=torch.float64, generator=generator)
    return Clusters(labels, F.normalize(features).to(dtype), ImageTable(cameras))


def draw_clusters(*, num_clusters: int = 6, dtype: torch.dtype = torch.float64, seed: int = 0) -> Clusters:
    """48 images of 3 cameras, some of them noise."""
    labels = torch.arange(48) % (num_clusters + 1) - 1
    return clusters_of(labels, torch.arange(48) // 2 % 3, dtype=dtype, seed=seed)


def draw_step(clusters: Clusters, images: Tensor, *, seed: int = 1) -> Step:
    """A step on the images (B,). Each view is their features with noise of its own, not normalised."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(VIEWS), len(images), clusters.features.shape[1], dtype=torch.float64, generator=generator)
    online, momentum, weak = 2 * clusters.features[images] + noise.to(clusters.features.dtype)
    return Step(clusters.labels[images], clusters.cameras[images], images, online.requires_grad_(), momentum, weak)


def images_of(clusters: Clusters, num_clusters: int, each: int) -> Tensor:
    """The first ``each`` images of each of the first clusters."""
    return torch.cat([(clusters.labels == k).nonzero()[:each, 0] for k in range(num_clusters)])


def usual(dtype: torch.dtype = torch.float64) -> tuple[Clusters, Step]:
    """Six clusters, and a batch of four images of each of three."""
    clusters = draw_clusters(dtype=dtype)
    return clusters, draw_step(clusters, images_of(clusters, 3, 4))


def degenerate(*, unknown_cameras: bool) -> dict[str, tuple[Clusters, Step]]:
    """Cases that can occur in an epoch, by name; ``unknown_cameras`` adds one with all cameras -1."""
    some, column = draw_clusters(), torch.arange(48)
    cases = {
        "one identity": (some, images_of(some, 1, 6)),
        "one image of each identity": (some, images_of(some, 6, 1)),
        "one image": (some, images_of(some, 1, 1)),
        "one image several times": (some, images_of(some, 2, 1).repeat_interleave(4)),
        "one camera": (clusters_of(column % 6, 0 * column), column[:12]),
        "one cluster": (clusters_of(0 * column, column % 3), column[:12]),
        "clusters of one image": (clusters_of(column, column % 3), column[:6].repeat_interleave(2)),
    }
    if unknown_cameras:
        cases["unknown cameras"] = (clusters_of(column % 6, 0 * column - 1), column[:12])
    return {name: (clusters, draw_step(clusters, images)) for name, (clusters, images) in cases.items()}


def make_term(make: Factory, **keywords: Any) -> LossTerm:
    term = make(**keywords)
    require(isinstance(term, LossTerm), f"it returns a {type(term).__name__}, not a LossTerm")
    return term


def begin(term: LossTerm, clusters: Clusters, *, seed: int = 3) -> None:
    """Begins an epoch with seeded generators, as training does in each process."""
    seed_all_rng(seed)
    term.begin_epoch(clusters)


def begun(make: Factory, clusters: Clusters, **keywords: Any) -> LossTerm:
    term = make_term(make, **keywords)
    begin(term, clusters)
    return term


def loss_of(term: LossTerm, step: Step) -> Tensor:
    """The loss, with the same random numbers at each call."""
    seed_all_rng(5)
    loss = term(step)
    what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
    require(isinstance(loss, Tensor) and loss.dim() == 0, f"forward returns {what}, not a scalar")
    return loss


def gradient_of(term: LossTerm, step: Step) -> dict[str, Tensor]:
    """The loss and its gradient with respect to the online features."""
    online = step.online.detach().clone().requires_grad_()
    loss = loss_of(term, replace(step, online=online))
    gradient = torch.autograd.grad(loss, online, allow_unused=True)[0] if loss.requires_grad else None
    require(gradient is not None, "the online features get no gradient")
    return {"the loss": loss.detach(), "the gradient": gradient}


def move(term: LossTerm, step: Step) -> None:
    """Calls ``after_step`` as training does."""
    seed_all_rng(7)
    with torch.no_grad():
        term.after_step(step)


def memory(term: LossTerm) -> dict[str, Tensor]:
    return {f"the buffer {name}": buffer.detach().clone() for name, buffer in term.named_buffers()}


def first_change(before: dict[str, Tensor], after: dict[str, Tensor], *, tolerance: float = 0.0) -> str | None:
    """The first name whose tensors differ by more than ``tolerance`` times the largest entry, or 1 if that is less."""
    for name in sorted({*before, *after}):
        if name not in before or name not in after or before[name].shape != after[name].shape:
            return name
        one, other = before[name].detach().double(), after[name].detach().double()
        allowed = tolerance * max([1.0, *other.abs().flatten().tolist()])
        if not torch.allclose(one, other, rtol=0, atol=allowed, equal_nan=True):
            return name
    return None
