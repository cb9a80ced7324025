"""O2CAP (Wang, Li, Lai, Gong, Hua, IEEE TIP 2022): camera-aware proxies, associated by labels and by similarity."""

from __future__ import annotations

from torch import Tensor

from ..core import Clusters, camera_centroids, cross_camera_loss, online_proxy_loss, update_each
from ..errors import InputError
from .base import LOSS_REGISTRY, LossTerm, Step

PARTS = ("offline", "online")


@LOSS_REGISTRY.register()
class OfflineOnlineProxyLoss(LossTerm):
    """Contrast with the proxies of the image's cluster, and with those that resemble it now; both of one memory.

    A proxy is the mean of the images of one cluster in one camera, and moves towards each such image of a batch.

    Args:
        parts: "offline", where positives are the proxies of the image's cluster; "online", where they are the most
            similar ones of different cameras; or both.
        temperature: of both parts.
        num_negatives: the most similar other proxies; all where there are fewer.
        num_positives: of the online part.
        balance: weight of the image in the online ranking; its own proxy has the rest.
        momentum: weight of the old proxy in an update.

    Raises:
        InputError: for a value out of range.
    """

    views = frozenset({"online"})
    node = "O2CAP"
    needs_cameras = True

    def __init__(
        self,
        *,
        scale: float = 1.0,
        parts: tuple[str, ...] = PARTS,
        temperature: float = 0.07,
        num_negatives: int = 50,
        num_positives: int = 3,
        balance: float = 0.15,
        momentum: float = 0.2,
    ) -> None:
        super().__init__(scale=scale)
        if not parts or not set(parts) <= set(PARTS):
            raise InputError(f"PARTS {parts!r} must name one or both of {', '.join(PARTS)}")
        if num_negatives < 1 or num_positives < 1:
            raise InputError(f"NUM_NEGATIVES {num_negatives} and NUM_POSITIVES {num_positives} must be at least 1")
        if not (0 <= balance <= 1 and 0 <= momentum <= 1):
            raise InputError(f"BALANCE {balance} and MOMENTUM {momentum} must lie in [0, 1]")
        self.parts = frozenset(parts)
        self.contrast = {"temperature": temperature, "num_negatives": num_negatives}
        self.ranking = {"num_positives": num_positives, "balance": balance}
        self.momentum = momentum

    def begin_epoch(self, clusters: Clusters) -> None:
        proxies, labels, cameras = camera_centroids(clusters.features, clusters.labels, clusters.cameras)
        self.remember("proxies", proxies)
        self.remember("proxy_labels", labels)
        self.remember("proxy_cameras", cameras)

    def forward(self, step: Step) -> Tensor:
        known = (step.online, step.labels, step.cameras, self.proxies, self.proxy_labels)
        losses = []
        if "offline" in self.parts:
            losses.append(cross_camera_loss(*known, **self.contrast))
        if "online" in self.parts:
            losses.append(online_proxy_loss(*known, self.proxy_cameras, **self.contrast, **self.ranking))
        return self.scale * sum(losses)

    def after_step(self, step: Step) -> None:
        own = (step.labels[:, None] == self.proxy_labels) & (step.cameras[:, None] == self.proxy_cameras)
        self.proxies = update_each(self.proxies, step.online, own.int().argmax(1), momentum=self.momentum)
