"""MomentumReID: an online and a momentum encoder, trained by the losses that the config names."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from fastreid.config import CfgNode, configurable
from fastreid.modeling.heads import build_heads
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from fastreid.utils import comm
from torch import Tensor, nn

from ..config import lookup
from ..core import Clusters, update_momentum
from ..errors import InputError
from ..losses import LossTerm, Step, build_losses
from .backbone import build_fitting_backbone, check_compiler, with_found_values
from .batch_norm import split_batch_norms, splits_per_process
from .gather import encode_shuffled, gather_batch
from .pooling import keep_memory_format

ENCODERS = ("online", "momentum")


def trains_without_labels(cfg: CfgNode) -> bool:
    """Whether ``MODEL.META_ARCHITECTURE`` is one of this plugin's, and not one of fast-reid's.

    Raises:
        InputError: no meta-architecture has that name.
    """
    cls = lookup(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE")
    return getattr(cls, "without_labels", False)


@META_ARCH_REGISTRY.register()
class MomentumReID(nn.Module):
    """The model of ICE (ICCV 2021) and DCMIP (ICCV 2023).

    ``backbone`` and ``heads`` are the online encoder. They have the names of fast-reid's Baseline, so that its
    checkpoints, frozen layers and learning-rate factors apply; a checkpoint without a momentum encoder starts both. The
    momentum encoder averages the parameters of the online encoder and collects its own batch-norm statistics.

    Args:
        backbone: (B, 3, H, W) normalised images to (B, C, h, w) feature maps.
        heads: feature maps to (B, D) features.
        losses: log name -> loss term.
        pixel_mean, pixel_std: 3 values each, on the scale 0..255.
        alpha: weight of the old value in the momentum update.
        shuffle_bn: shuffle momentum batches over processes, and over the parts of a batch.
        online_view: also run the momentum encoder on the online encoder's view, for its batch-norm statistics.
        test_encoder: the encoder that runs in evaluation mode, "online" or "momentum".
        compiled: train both encoders through ``torch.compile``; parameters keep their names. Evaluation is not
            compiled, because the different size of its last batch would compile it again.
        bn_splits: parts of this process's batch, each with its own batch-norm statistics.
        frozen: names of modules of the online encoder that are not trained, nor their counterparts in the momentum
            encoder: they stay in evaluation mode.

    Under autocast the encoders run in its precision; features and losses have at least float32.

    Attributes:
        frozen: the frozen modules of both encoders, and all modules in them.

    Raises:
        InputError: ``compiled`` without a C++ compiler; ``frozen`` names a module that does not exist, or everything.
    """

    without_labels = True  # its trainer clusters; fast-reid's own meta-architectures are trained with labels

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        heads: nn.Module,
        losses: nn.ModuleDict,
        pixel_mean: list[float],
        pixel_std: list[float],
        alpha: float = 0.999,
        shuffle_bn: bool = True,
        online_view: bool = False,
        test_encoder: str = "momentum",
        compiled: bool = False,
        bn_splits: int = 1,
        frozen: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.frozen: frozenset[nn.Module] = frozenset()
        for part in (backbone, heads):
            split_batch_norms(part, bn_splits)
            keep_memory_format(part)
        self.backbone = backbone
        self.heads = heads
        self.momentum = nn.ModuleDict({"backbone": copy.deepcopy(backbone), "heads": copy.deepcopy(heads)})
        self.momentum.requires_grad_(False)
        self._freeze(frozen)
        self.losses = losses
        self.views = frozenset().union(*(term.views for term in self.terms))
        self.alpha = alpha
        self.shuffle_bn = shuffle_bn
        self.online_view = online_view
        self.bn_splits = bn_splits
        self.test_encoder = test_encoder
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(1, -1, 1, 1), persistent=False)
        self._step: Step | None = None
        # Convolution and batch norm are faster with the channels innermost, on CPUs and on GPUs.
        self.to(memory_format=torch.channels_last)
        self.compiled = compiled
        if compiled:
            check_compiler()
            for module in (self.backbone, self.heads, *self.momentum.values()):
                module.compile()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        backbone = build_fitting_backbone(cfg)
        cfg = with_found_values(cfg, backbone)
        return {
            "backbone": backbone,
            "heads": build_heads(cfg),
            "losses": build_losses(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "alpha": cfg.MODEL.MOMENTUM.ALPHA,
            "shuffle_bn": cfg.MODEL.MOMENTUM.SHUFFLE_BN,
            "online_view": cfg.MODEL.MOMENTUM.ONLINE_VIEW,
            "test_encoder": cfg.TEST.ENCODER,
            "compiled": cfg.MODEL.COMPILE,
            "bn_splits": splits_per_process(cfg, comm.get_world_size()),
            "frozen": cfg.MODEL.FROZEN,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def terms(self) -> list[LossTerm]:
        return list(self.losses.values())

    def parts_of(self, encoder: str) -> tuple[nn.Module, nn.Module]:
        """Backbone and heads of "online" or "momentum"."""
        return tuple(self.momentum.values()) if encoder == "momentum" else (self.backbone, self.heads)

    def encode(self, images: Tensor, encoder: str) -> Tensor:
        """(B, 3, H, W) images in [0, 255], which are not changed, to (B, D) features of "online" or "momentum"."""
        images = (images.to(self.device, non_blocking=True) - self.pixel_mean).div_(self.pixel_std)
        images = images.contiguous(memory_format=torch.channels_last)
        backbone, heads = self.parts_of(encoder)
        uncompiled = self.compiled and not self.training
        features = heads.forward(backbone.forward(images)) if uncompiled else heads(backbone(images))
        return features.to(torch.promote_types(features.dtype, torch.float32))

    def forward(self, batch: Mapping[str, Tensor] | Tensor) -> dict[str, Tensor] | Tensor:
        """In training a scalar per loss; in evaluation the (B, D) features of ``test_encoder``.

        Args:
            batch: in training one (B, 3, H, W) tensor per view, and (B,) ``targets``, ``camids`` and ``indices``;
                in evaluation ``images``, in a dict or as a tensor.
        """
        if not self.training:
            return self.encode(batch["images"] if isinstance(batch, Mapping) else batch, self.test_encoder)
        self._step = step = self._run_views(batch)
        with torch.autocast(self.device.type, enabled=False):
            return {name: term(step) for name, term in self.losses.items()}

    def train(self, mode: bool = True) -> MomentumReID:
        """Like ``nn.Module``'s; frozen modules stay in evaluation mode."""
        super().train(mode)
        for module in self.frozen:
            module.training = False
        return self

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False):
        """Like ``nn.Module``'s; weights without a momentum encoder, such as Baseline's, start both encoders."""
        if not any(key.startswith("momentum.") for key in state_dict):
            state_dict = {**state_dict, **{f"momentum.{key}": value for key, value in state_dict.items()}}
        return super().load_state_dict(state_dict, strict, assign)

    def begin_epoch(self, clusters: Clusters) -> None:
        """Fills the memory of every loss."""
        for term in self.terms:
            term.begin_epoch(clusters)

    def after_step(self) -> None:
        """After the optimiser's step: updates the momentum encoder, then the memory of every loss."""
        update_momentum(self.momentum["backbone"], self.backbone, self.alpha)
        update_momentum(self.momentum["heads"], self.heads, self.alpha)
        with torch.no_grad():
            for term in self.terms:
                term.after_step(self._step)
        self._step = None

    def _freeze(self, names: Sequence[str]) -> None:
        if not names:
            return
        modules = dict(self.named_modules())
        parts = {name for name in modules if name.partition(".")[0] in ("backbone", "heads")}
        for name in names:
            if name not in parts:
                around = name
                while around not in parts:
                    around = around.rpartition(".")[0] or "backbone"
                children = ", ".join(f"{around}.{child}" for child, _ in modules[around].named_children())
                raise InputError(f"MODEL.FROZEN: the encoder has no module {name!r}; {around} consists of {children}")
            modules[name].requires_grad_(False)
            for module in (modules[name], modules[f"momentum.{name}"]):
                self.frozen |= {*module.modules()}
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise InputError(f"MODEL.FROZEN {tuple(names)} leaves nothing to train; name fewer modules")
        self.train(self.training)

    def _run_views(self, batch: Mapping[str, Tensor]) -> Step:
        """The features of the views that the losses read, for the batch of all processes."""
        features = {}
        if "online" in self.views:
            features["online"] = gather_batch(self.encode(batch["online"], "online"))
        if self.online_view:
            self._encode_keys(batch["online"])
        for view in sorted(self.views - {"online"}):
            features[view] = self._encode_keys(batch[view])
        labels, cameras, indices = (
            gather_batch(batch[name].to(self.device, non_blocking=True)) for name in ("targets", "camids", "indices")
        )
        return Step(labels, cameras, indices, **features)

    @torch.no_grad()
    def _encode_keys(self, images: Tensor) -> Tensor:
        def encode(images: Tensor) -> Tensor:
            return self.encode(images, "momentum")

        images = images.to(self.device, non_blocking=True)
        if not self.shuffle_bn:
            return gather_batch(encode(images))
        return encode_shuffled(encode, images, self.bn_splits)
