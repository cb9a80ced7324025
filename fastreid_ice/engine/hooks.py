"""The hooks that every run has, and a registry for further ones, which ``HOOKS`` in the config names."""

from __future__ import annotations

import logging
import time

import numpy as np
import torch
import torch.distributed as dist
from fastreid.config import CfgNode, configurable
from fastreid.engine.train_loop import HookBase
from fastreid.utils import comm
from fastreid.utils.env import seed_all_rng
from fastreid.utils.registry import Registry
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..clusterers import Clusterer, build_clusterer
from ..config import Stage, lookup
from ..core import Clusters, churn, label_quality
from ..errors import InputError
from ..files import explaining_writes
from ..reporting import describe_doubt, save_labels, save_radii
from .features import extract_features

HOOK_REGISTRY = Registry("HOOK")
HOOK_REGISTRY.__doc__ = """fast-reid hooks by name. A registered class is called with ``cls(cfg)``."""

logger = logging.getLogger(f"fastreid.{__name__}")


def build_hooks(cfg: CfgNode) -> list[HookBase]:
    """``ReclusterHook`` and ``MomentumHook``, then the hooks that ``HOOKS`` names, in that order.

    If ``HOOKS`` names one of these two, or a hook derived from it, it runs at that place instead.

    Raises:
        InputError: a name is not registered.
    """
    named = [lookup(HOOK_REGISTRY, name, "HOOKS")(cfg) for name in cfg.HOOKS]
    missing = [cls for cls in (ReclusterHook, MomentumHook) if not any(isinstance(hook, cls) for hook in named)]
    return [*(cls(cfg) for cls in missing), *named]


@HOOK_REGISTRY.register()
class ReclusterHook(HookBase):
    """Before each epoch: features, clusters, memories, loader.

    With fewer than two clusters nothing can be learnt: the epoch keeps the previous labels, or if there are none yet,
    every image is a separate identity in that epoch. ``patience`` such epochs in a row end the run.

    Args:
        clusterer: features to clusters.
        encoder: the encoder whose features are clustered, "online" or "momentum".
        patience: see above.
        seed: everything random in an epoch depends only on this and the number of the epoch.
        relabel: continue from a checkpoint with other training images, without its labels.
        amp, flip: how features are extracted, see ``extract_features``.
    """

    @configurable
    def __init__(
        self,
        *,
        clusterer: Clusterer,
        encoder: str,
        patience: int,
        seed: int,
        relabel: bool = False,
        amp: bool = False,
        flip: bool = False,
    ) -> None:
        self.clusterer = clusterer
        self.encoder = encoder
        self.patience = patience
        self.seed = seed
        self.relabel = relabel
        self.options = {"amp": amp, "flip": flip}
        self.labels: Tensor | None = None
        self.failures = 0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            "clusterer": build_clusterer(cfg),
            "encoder": cfg.CLUSTER.FEATURES,
            "patience": cfg.CLUSTER.PATIENCE,
            "seed": cfg.SEED,
            "relabel": cfg.DATASETS.CHANGED == "relabel",
            "amp": cfg.SOLVER.AMP.ENABLED,
            "flip": cfg.TEST.FLIP.ENABLED,
        }

    def state_dict(self) -> dict:
        images = self.trainer.data_loader.training_set
        return {"labels": self.labels, "failures": self.failures, "images": images.fingerprint}

    def load_state_dict(self, state: dict) -> None:
        """Restores labels and failures if the training images are those of the labels.

        Raises:
            InputError: the images are others, and ``relabel`` is not set.
        """
        images = self.trainer.data_loader.training_set
        if state.get("images", images.fingerprint) == images.fingerprint:
            self.labels, self.failures = state["labels"], state["failures"]
        elif self.relabel:
            logger.warning("The training images have changed (DATASETS.CHANGED relabel): the old labels are dropped")
        else:
            raise InputError(
                f"--resume: the last checkpoint in {self.trainer.cfg.OUTPUT_DIR!r} was trained on "
                f"{len(state['labels'])} images, which are not the present {len(images)}; restore the earlier ones, or "
                "continue with the present ones and new labels by DATASETS.CHANGED relabel"
            )

    def before_epoch(self) -> None:
        epoch = self.trainer.epoch
        seed_all_rng(int(np.random.SeedSequence((self.seed, epoch, comm.get_rank())).generate_state(1)[0]))
        model = unwrap(self.trainer.model)
        sync_buffers(model)
        start = time.perf_counter()
        features, readable = extract_features(model, self.trainer.feature_loader, self.encoder, **self.options)
        momentum_features = None
        if self.encoder == "online" and any(term.needs_momentum_features for term in model.terms):
            momentum_features, _ = extract_features(model, self.trainer.feature_loader, "momentum", **self.options)
        seconds = {"features": time.perf_counter() - start}

        found = self._cluster(features, readable)
        labels = self._usable(found, readable)
        columns = (labels, features, self.trainer.data_loader.training_set.known, momentum_features)
        model.begin_epoch(Clusters(*(None if column is None else column.to(model.device) for column in columns)))
        self.trainer.data_loader.reset(labels, seed=(self.seed, epoch))
        if comm.is_main_process():
            self._report(found, readable, seconds | self.clusterer.seconds)
            images, stage = self.trainer.data_loader.training_set, Stage(self.trainer.cfg)
            with explaining_writes(str(stage.labels)):
                save_labels(stage.labels, images.paths, images.named_cameras, found, features)
                if self.clusterer.sweep:
                    save_radii(stage.radii, self.clusterer.sweep)
        self.labels = labels

    def after_train(self) -> None:
        self.trainer.data_loader.close()
        self.trainer.feature_loader = None  # this ends its workers

    def _cluster(self, features: Tensor, readable: Tensor) -> Tensor:
        """Labels (N,) of the readable images, the same in all processes; the others are noise."""
        images = self.trainer.data_loader.training_set
        complete = bool(readable.all())
        if not complete:
            logger.warning(
                "%d of %d training images cannot be read and are left out (DATALOADER.UNREADABLE skip), the first: %s",
                (~readable).sum(),
                len(readable),
                images.paths[int((~readable).int().argmax())],
            )
        labels = torch.full((len(images),), -1)
        rows = slice(None) if complete else readable  # a mask would copy all features
        if readable.any():
            clusters = self.clusterer(features[rows], images.known[rows])
            labels[rows] = clusters.labels.cpu()
        return labels

    def _usable(self, found: Tensor, readable: Tensor) -> Tensor:
        """The labels to train on: those found, or a substitute if they cannot be learnt from."""
        count = int(found.max()) + 1
        if count >= 2:
            self.failures = 0
            return found
        self.failures += 1
        what = "every image is noise" if count == 0 else "all in one cluster"
        if self.failures >= self.patience:
            raise InputError(
                f"{self.failures} epochs in a row found fewer than two clusters (now: {what}); "
                f"{self.clusterer.if_all_noise if count == 0 else self.clusterer.if_one_cluster}, "
                "or start from better weights (MODEL.WEIGHTS)"
            )
        if self.labels is not None:
            logger.warning("Fewer than two clusters (%s); this epoch trains on the previous labels", what)
            return self.labels
        logger.warning("Fewer than two clusters (%s); in this epoch every image is a separate identity", what)
        return (readable.cumsum(0) - 1).where(readable, -1)

    def _report(self, found: Tensor, readable: Tensor, seconds: dict[str, float]) -> None:
        sizes = torch.bincount(found[found >= 0])
        scalars = {
            "cluster/number": len(sizes),
            "cluster/noise_share": (found < 0).float().mean().item(),
            "cluster/largest": sizes.max().item() if len(sizes) else 0,
            "cluster/unreadable": (~readable).sum().item(),
        }
        truth = self.trainer.data_loader.training_set.identities
        known = truth >= 0
        if known.any():
            quality = label_quality(found[known], truth[known])
            scalars["cluster/ari"] = quality.adjusted_rand_index
            scalars["cluster/nmi"] = quality.normalized_mutual_information
        if self.labels is not None:
            scalars["cluster/churn"] = churn(self.labels, found)
        logger.info(
            "Epoch %d: %d clusters of %d images, %.1f %% noise, largest %d, %s%.1f s",
            self.trainer.epoch + 1,
            scalars["cluster/number"],
            len(found),
            100 * scalars["cluster/noise_share"],
            scalars["cluster/largest"],
            f"ARI {scalars['cluster/ari']:.3f}, " if known.any() else "",
            sum(seconds.values()),
        )
        if doubt := describe_doubt(found[readable].numpy(), self.trainer.cfg):
            logger.warning("Epoch %d: %s", self.trainer.epoch + 1, doubt)
        scalars |= {f"cluster/{name}": value for name, value in self.clusterer.scalars.items()}
        scalars |= {f"seconds/{stage}": value for stage, value in seconds.items()}
        self.trainer.storage.iter = self.trainer.iter
        self.trainer.storage.put_scalars(**scalars, smoothing_hint=False)


@HOOK_REGISTRY.register()
class MomentumHook(HookBase):
    """After each step: the momentum encoder follows the online one, then the losses update their memories."""

    def __init__(self, cfg: CfgNode) -> None:
        pass

    def after_step(self) -> None:
        unwrap(self.trainer.model).after_step()


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def sync_buffers(model: nn.Module) -> None:
    """Copies the first process's batch-norm statistics to all, since they drift apart in training."""
    if comm.get_world_size() > 1:
        saved = model.state_dict(keep_vars=True)
        for name, buffer in model.named_buffers():
            if name in saved:
                dist.broadcast(buffer, src=0)
