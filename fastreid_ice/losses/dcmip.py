"""The two losses of DCMIP (Zou et al., ICCV 2023); the first of them alone is Cluster Contrast (Dai et al., 2021).

Both memories are updated after the optimiser's step, from the batch of all processes, and never in a backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from fastreid.utils import comm
from torch import Tensor

from ..core import (
    Clusters,
    centroids,
    discrepant_proxy_loss,
    draw_batch_instances,
    draw_instances,
    multi_instance_loss,
    update_each,
    update_hardest,
    update_mean,
)
from ..errors import InputError
from .base import LOSS_REGISTRY, LossTerm, Step

# How a batch updates a proxy, by its name in the config. A new design is a function like these,
# (proxies, features, labels, *, momentum) -> updated proxies (see core.proxies), and an entry here.
UPDATE_REGISTRY: dict[str, Callable[..., Tensor]] = {
    "hardest": update_hardest,
    "mean": update_mean,
    "each": update_each,
}


@LOSS_REGISTRY.register()
class DiscrepantProxyLoss(LossTerm):
    """Several proxies per cluster, which start at its mean and then differ, since each has an update design of its own.

    Args:
        updates: one name from ``UPDATE_REGISTRY`` per proxy. ("each",) and ("hardest",) are Cluster Contrast.
        margins: one value of at least 0 per proxy, the loss below which it gives no gradient; empty for none.
        momentum: weight of the old proxy in an update, in [0, 1].

    Raises:
        InputError: for an unknown name, or a value out of range.
    """

    views = frozenset({"online"})
    node = "DISCREPANT_PROXY"

    def __init__(
        self,
        *,
        scale: float = 1.0,
        temperature: float = 0.05,
        updates: Sequence[str] = ("hardest", "mean"),
        margins: Sequence[float] = (),
        momentum: float = 0.1,
    ) -> None:
        super().__init__(scale=scale)
        if not updates or not set(updates) <= set(UPDATE_REGISTRY):
            raise InputError(f"UPDATES {tuple(updates)} must be one or more of {', '.join(sorted(UPDATE_REGISTRY))}")
        numbers = all(isinstance(margin, (int, float)) and margin >= 0 for margin in margins or ())
        if margins and (len(margins) != len(updates) or not numbers):
            raise InputError(
                f"MARGINS {tuple(margins)} must hold a number from 0 for each of the UPDATES {tuple(updates)}, "
                "or be () for none"
            )
        if not 0 <= momentum <= 1:
            raise InputError(f"MOMENTUM {momentum} must lie in [0, 1]")
        self.temperature = temperature
        self.updates = [UPDATE_REGISTRY[name] for name in updates]
        self.margins = margins or None
        self.momentum = momentum

    def begin_epoch(self, clusters: Clusters) -> None:
        proxies = F.normalize(centroids(clusters.features, clusters.labels))
        self.remember("proxies", proxies.repeat(len(self.updates), 1, 1))

    def forward(self, step: Step) -> Tensor:
        loss = discrepant_proxy_loss(
            step.online, self.proxies, step.labels, temperature=self.temperature, margins=self.margins
        )
        return self.scale * loss

    def after_step(self, step: Step) -> None:
        moved = [
            update(proxies, step.online, step.labels, momentum=self.momentum)
            for update, proxies in zip(self.updates, self.proxies, strict=True)
        ]
        self.proxies = torch.stack(moved)


@LOSS_REGISTRY.register()
class MultiInstanceLoss(LossTerm):
    """A bank with features of each cluster: the most similar ones of others repel, the least similar own one attracts.

    The bank starts with the momentum features of random members, and afterwards holds features from the last batch that
    contained the cluster. It takes 4 C K D bytes.

    Args:
        num_instances: features kept per cluster, at least 1; members of a smaller cluster are repeated.
        repetition: when the bank is filled, members are repeated only as "needed", or may "always" be.
        store: the encoder whose features of a batch replace those of its clusters, "momentum" or "online".
        positive: where the positive is searched, in the "bank" or among the momentum features of the "batch".

    Raises:
        InputError: for a value out of range.
    """

    views = frozenset({"online", "momentum"})
    node = "MULTI_INSTANCE"
    needs_momentum_features = True

    def __init__(
        self,
        *,
        scale: float = 1.0,
        temperature: float = 0.05,
        num_instances: int = 16,
        repetition: str = "needed",
        store: str = "momentum",
        positive: str = "bank",
    ) -> None:
        super().__init__(scale=scale)
        if num_instances < 1:
            raise InputError(f"NUM_INSTANCES {num_instances} must be at least 1")
        if repetition not in ("needed", "always"):
            raise InputError(f"REPETITION {repetition!r} must be 'needed' or 'always'")
        if store not in ("momentum", "online"):
            raise InputError(f"STORE {store!r} must be 'momentum' or 'online'")
        if positive not in ("bank", "batch"):
            raise InputError(f"POSITIVE {positive!r} must be 'bank' or 'batch'")
        self.temperature = temperature
        self.num_instances = num_instances
        self.repetition = repetition
        self.store = store
        self.positive = positive

    def begin_epoch(self, clusters: Clusters) -> None:
        features = clusters.features if clusters.momentum_features is None else clusters.momentum_features
        # The same seed in all processes, so that they draw the same instances throughout the epoch.
        self.generator = torch.Generator(features.device).manual_seed(comm.shared_random_seed())
        _, members = draw_instances(
            clusters.labels, self.num_instances, repetition=self.repetition, generator=self.generator
        )
        self.remember("bank", F.normalize(features[members], dim=2))

    def forward(self, step: Step) -> Tensor:
        loss = multi_instance_loss(
            step.online,
            self.bank,
            step.labels,
            temperature=self.temperature,
            positives=step.momentum if self.positive == "batch" else None,
        )
        return self.scale * loss

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        members = draw_batch_instances(step.labels, self.num_instances, generator=self.generator)
        features = step.momentum if self.store == "momentum" else step.online
        # In place, because a copy of the bank would double its memory. Rows of one cluster write the same values.
        self.bank[step.labels] = F.normalize(features.to(self.bank.dtype))[members]
