"""Batch-norm statistics of training images as they are, for clustering and evaluation."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
import torch.distributed as dist
from fastreid.config import CfgNode
from fastreid.engine.train_loop import HookBase
from fastreid.utils import comm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from ..compat.training import mixed_precision
from ..data import build_feature_loader
from ..modeling import ENCODERS
from ..progress import progress
from .hooks import unwrap

logger = logging.getLogger(f"fastreid.{__name__}")


class PreciseBN(HookBase):
    """Computes batch-norm statistics after every epoch (``TEST.PRECISE_BN``).

    Training leaves running averages over blurred, erased and, with ``MODEL.BN_SPLITS``, very few images, while other
    weights were used. Evaluation, the saved weights and the next clustering use these statistics instead: of
    ``TEST.PRECISE_BN.NUM_ITER`` training batches that are drawn at random from all training images and prepared like
    test images, with the present weights. The training steps themselves do not use them. The first clustering uses the
    statistics of the weights that training starts from: others made it worse.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        used = {cfg.TEST.ENCODER, cfg.CLUSTER.FEATURES}
        self.encoders = [encoder for encoder in ENCODERS if encoder in used or cfg.TEST.BOTH_ENCODERS]

    def after_epoch(self) -> None:
        cfg, images, epoch = self.cfg, self.trainer.data_loader.training_set, self.trainer.epoch
        order = np.random.default_rng((cfg.SEED, epoch)).permutation(len(images))
        rank, processes = comm.get_rank(), comm.get_world_size()
        batches = np.array_split(order, max(len(order) // cfg.SOLVER.IMS_PER_BATCH, processes))
        steps = min(math.ceil(cfg.TEST.PRECISE_BN.NUM_ITER / processes), len(batches) // processes)
        own = [batch.tolist() for batch in batches[rank * steps : (rank + 1) * steps]]
        loader = build_feature_loader(cfg, images, own)
        model = unwrap(self.trainer.model)
        if not update_statistics(model, loader, self.encoders, amp=cfg.SOLVER.AMP.ENABLED) and epoch == 0:
            logger.warning("TEST.PRECISE_BN changes nothing: the encoders have no batch norm")


def update_statistics(model: nn.Module, loader: DataLoader, encoders: Sequence[str], *, amp: bool = False) -> int:
    """Replaces the batch-norm statistics of encoders by the mean over the batches of all processes.

    Every batch is normalised as a whole, not in ``MODEL.BN_SPLITS`` parts. All other layers are in evaluation mode, and
    frozen ones (``MODEL.FROZEN``) keep their statistics.

    Args:
        model: a ``MomentumReID``; the mode of each of its modules is restored.
        loader: this process's batches of ``images`` and ``readable``, from ``build_feature_loader``; as many as in the
            other processes.
        encoders: "online", "momentum" or both.
        amp: run the network under autocast, as for ``encode_images``.

    Returns:
        The number of batch-norm layers.
    """
    layers = [layer for encoder in encoders for layer in _layers(model, encoder)]
    if not layers:
        return 0
    precision = mixed_precision(model.device) if amp else None
    autocast = torch.autocast(model.device.type, precision, enabled=precision is not None)
    with _averaging(model, layers), torch.no_grad(), autocast:
        for batch in progress(loader, "Computing batch-norm statistics"):
            images = batch["images"][batch["readable"].bool()]
            for encoder in encoders:
                if len(images) > 1:
                    model.encode(images, encoder)
    if (processes := comm.get_world_size()) > 1:
        for layer in layers:
            for statistic in (layer.running_mean, layer.running_var):
                dist.all_reduce(statistic)
                statistic /= processes
    return len(layers)


def _layers(model: nn.Module, encoder: str) -> Iterator[_BatchNorm]:
    for part in model.parts_of(encoder):
        for module in part.modules():
            if isinstance(module, _BatchNorm) and module.track_running_stats and module not in model.frozen:
                yield module


@contextmanager
def _averaging(model: nn.Module, layers: Sequence[_BatchNorm]) -> Iterator[None]:
    """Evaluation mode, in which these layers, emptied, average the statistics of the batches that they see."""
    modes = [(module, module.training) for module in model.modules()]
    with ExitStack() as stack:
        for module, training in modes:
            stack.callback(setattr, module, "training", training)
        model.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.training = True
            changed = {"momentum": None}  # torch: a cumulative mean
            if hasattr(layer, "num_splits"):
                changed["num_splits"] = 1
            for name, value in changed.items():
                stack.callback(setattr, layer, name, getattr(layer, name))
                setattr(layer, name, value)
        yield
