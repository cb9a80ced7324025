"""The loss protocol, the registry, and ``build_losses(cfg)``.

A new loss is one file with a registered ``LossTerm`` and its name in ``MODEL.LOSSES.NAME``.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import ClassVar

from fastreid.config import CfgNode
from fastreid.utils.registry import Registry
from torch import Tensor, nn

from ..config import lookup
from ..core import Clusters
from ..errors import InputError

LOSS_REGISTRY = Registry("LOSS")
LOSS_REGISTRY.__doc__ = (
    """Loss terms on pseudo labels. A registered class is a ``LossTerm``, built by ``build_losses``."""
)


@dataclass(frozen=True)
class Step:
    """One training step as the losses see it: the batch of all processes, B images in total.

    Args:
        labels: (B,) pseudo labels in [0, C).
        cameras: (B,) camera ids, as in ``Clusters.cameras``.
        indices: (B,) positions in the training set.
        online, momentum, momentum_weak: (B, D) features of each view as the encoder emits them, or None if no loss
            reads the view. Only ``online`` carries a gradient.
    """

    labels: Tensor
    cameras: Tensor
    indices: Tensor
    online: Tensor | None = None
    momentum: Tensor | None = None
    momentum_weak: Tensor | None = None


class LossTerm(nn.Module):
    """Base of all losses: a weight, hyper-parameters, and the memory that the loss needs.

    A term declares the node of its config, ``MODEL.LOSSES.<node>``, whose keys are the keyword arguments of
    ``__init__`` in capitals, and the views it reads: "online", the online encoder on a strong view; "momentum", the
    momentum encoder on another strong view; "momentum_weak", the momentum encoder on the weak view, which is only
    resized. A term that sets ``needs_momentum_features`` finds the momentum encoder's features of all images in its
    ``Clusters``, whichever features were clustered. One that sets ``needs_cameras`` is refused if cameras are not
    known. The memory of a loss is kept in buffers that are not saved, because every epoch fills them again.
    """

    views: ClassVar[frozenset[str]]
    node: ClassVar[str]
    needs_momentum_features: ClassVar[bool] = False
    needs_cameras: ClassVar[bool] = False

    def __init__(self, *, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def begin_epoch(self, clusters: Clusters) -> None:
        """Fills the memory from this epoch's clusters."""

    def forward(self, step: Step) -> Tensor:
        """The loss of a step: a scalar, already weighted."""
        raise NotImplementedError

    def after_step(self, step: Step) -> None:
        """Updates the memory after the optimiser's step, without gradient. ``step`` is the same in all processes."""

    def remember(self, name: str, value: Tensor) -> None:
        """Keeps ``value`` as the buffer ``name``, on the module's device, outside of checkpoints."""
        self.register_buffer(name, value, persistent=False)


def build_losses(cfg: CfgNode) -> nn.ModuleDict:
    """The loss terms that ``MODEL.LOSSES.NAME`` lists, by the name under which they are logged.

    Raises:
        InputError: an unknown or repeated name, a key that the loss does not take, or a value that it refuses with an
            InputError. Any other error of a loss is passed on unchanged.
    """
    terms = nn.ModuleDict()
    for cls in _named_losses(cfg):
        options = {key.lower(): value for key, value in cfg.MODEL.LOSSES.get(cls.node, {}).items()}
        try:
            inspect.signature(cls).bind(**options)
        except TypeError as error:
            raise InputError(f"MODEL.LOSSES.{cls.node}: {error}") from error
        try:
            terms[f"loss_{cls.node.lower()}"] = cls(**options)
        except InputError as error:
            raise InputError(f"MODEL.LOSSES.{cls.node}: {error}") from error
    return terms


def required_views(cfg: CfgNode) -> frozenset[str]:
    """The views that the losses of ``MODEL.LOSSES.NAME`` read, all together."""
    return frozenset().union(*(cls.views for cls in _named_losses(cfg)))


def check_cameras(cfg: CfgNode, cameras: Tensor) -> None:
    """Checks that the losses of ``MODEL.LOSSES.NAME`` can learn from these cameras, (N,) int64, -1 if not known.

    Raises:
        InputError: a camera is not known, and a loss needs it.
    """
    losses = _named_losses(cfg)
    refused = [cls.__name__ for cls in losses if cls.needs_cameras]
    if not refused or (cameras >= 0).all():
        return
    others = tuple(cls.__name__ for cls in losses if not cls.needs_cameras) or ("ClusterProxyLoss",)
    raise InputError(
        f"MODEL.LOSSES.NAME: {', '.join(refused)} needs cameras, and those of {int((cameras < 0).sum())} images are "
        f"not known; name {others} instead, or say how to tell the cameras of a folder (DATASETS.FOLDER.CAMERAS)"
    )


def _named_losses(cfg: CfgNode) -> list[type[LossTerm]]:
    names = tuple(cfg.MODEL.LOSSES.NAME)
    if not names or len(set(names)) < len(names):
        raise InputError(f"MODEL.LOSSES.NAME {names} must list one or more losses, each once")
    return [lookup(LOSS_REGISTRY, name, "MODEL.LOSSES.NAME") for name in names]
