"""Batch norm over parts of a batch (ghost batch norm): one process normalises as several would.

A recipe for four GPUs computes statistics over a quarter of the batch in each of them, and its results depend on
that. The parts are contiguous, like the shares of the processes in the batch that the losses see.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from torch import Tensor, nn

from ..errors import InputError


class Split:
    """In training, each of ``num_splits`` contiguous parts of the batch is normalised by its own statistics.

    Running statistics follow the first part, because a run of several processes saves those of the first process.
    Evaluation, frozen statistics and the names in a checkpoint do not change.
    """

    num_splits: int

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, ...) to (B, C, ...).

        Raises:
            ValueError: in training, if B is not a multiple of ``num_splits``.
        """
        if not self.training:
            return super().forward(features)
        if len(features) % self.num_splits:
            raise ValueError(
                f"a batch of {len(features)} cannot be split into {self.num_splits} equal parts; change "
                f"SOLVER.IMS_PER_BATCH or MODEL.BN_SPLITS"
            )
        # One call per part: merging parts and channels for a single call would copy the input as well as the output,
        # and undo channels_last.
        first, *others = features.chunk(self.num_splits)
        normalised = [F.batch_norm(part, None, None, self.weight, self.bias, True, eps=self.eps) for part in others]
        return torch.cat([super().forward(first), *map(self.activate, normalised)])

    def activate(self, features: Tensor) -> Tensor:
        """What follows normalisation in the layer: nothing by default."""
        return features

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_splits={self.num_splits}"


class SplitBatchNorm1d(Split, nn.BatchNorm1d):
    """See ``Split``."""


class SplitBatchNorm2d(Split, nn.BatchNorm2d):
    """See ``Split``."""


SPLIT = {nn.BatchNorm1d: SplitBatchNorm1d, nn.BatchNorm2d: SplitBatchNorm2d}


def split_batch_norms(module: nn.Module, num_splits: int) -> None:
    """Make every batch norm of ``module`` treat a batch as ``num_splits`` parts; 1 changes nothing.

    Raises:
        InputError: synchronised batch norm, whose statistics cover all processes, or a class that cannot be split.
    """
    if num_splits == 1:
        return
    if "timm" in sys.modules:  # importing it takes a second, and without it there is none of its batch norms
        from . import timm_batch_norm  # noqa: F401  adds them to SPLIT
    for child in module.modules():
        if isinstance(child, nn.SyncBatchNorm):
            raise InputError("MODEL.BN_SPLITS splits what syncBN joins: set it to 1, or the NORM keys to BN")
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            # The class whose forward it uses: fast-reid's batch norms differ from torch's in their constructor only.
            plain = next((p for p in SPLIT if isinstance(child, p) and type(child).forward is p.forward), None)
            if plain is None:
                raise InputError(f"MODEL.BN_SPLITS cannot split a {type(child).__name__} of this backbone: set it to 1")
            child.__class__ = SPLIT[plain]  # keeps parameters, buffers, hooks and mode
            child.num_splits = num_splits


def splits_per_process(cfg: CfgNode, processes: int) -> int:
    """The number of parts into which each process splits its share, for ``MODEL.BN_SPLITS`` parts of the whole batch.

    Raises:
        InputError: the batch, or the parts, cannot be divided evenly, or a part is a single image.
    """
    splits = cfg.MODEL.BN_SPLITS
    if splits < 1 or cfg.SOLVER.IMS_PER_BATCH % splits:
        raise InputError(
            f"MODEL.BN_SPLITS {splits} must divide the batch, SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}"
        )
    if 1 < splits == cfg.SOLVER.IMS_PER_BATCH:
        raise InputError(
            f"MODEL.BN_SPLITS {splits} leaves one image to each part of the batch, and batch norm needs two; raise "
            "SOLVER.IMS_PER_BATCH or lower MODEL.BN_SPLITS"
        )
    if splits > processes and splits % processes:
        raise InputError(f"MODEL.BN_SPLITS {splits} must be a multiple of the number of processes, {processes}")
    return max(splits // processes, 1)
