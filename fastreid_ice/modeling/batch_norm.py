"""Batch norm over parts of a batch (ghost batch norm): one process normalises as several would.

A recipe for four GPUs takes its statistics over a quarter of the batch in each of them, and its figures depend on
that. Parts are contiguous, as the shares of the processes are in the batch that the losses see.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from ..errors import InputError


class _Split:
    """In training each of ``num_splits`` contiguous parts of the batch is normalised by its own statistics.

    Running statistics follow the first part, because what a run of several processes saves is those of the first one.
    In evaluation, and with frozen statistics, nothing changes; nor do the names in a checkpoint.
    """

    num_splits: int

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, ...) to (B, C, ...).

        Raises:
            ValueError: in training, B is no multiple of ``num_splits``.
        """
        if not self.training:
            return super().forward(features)
        if len(features) % self.num_splits:
            raise ValueError(
                f"a batch of {len(features)} cannot be split into {self.num_splits} equal parts; change "
                f"SOLVER.IMS_PER_BATCH or MODEL.BN_SPLITS"
            )
        # A call per part: to merge parts and channels into one call's channels would copy the input as well as the
        # output, and undo channels_last.
        first, *others = features.chunk(self.num_splits)
        normalised = [F.batch_norm(part, None, None, self.weight, self.bias, True, eps=self.eps) for part in others]
        return torch.cat([super().forward(first), *map(self.activate, normalised)])

    def activate(self, features: Tensor) -> Tensor:
        """What the layer does besides: nothing."""
        return features

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_splits={self.num_splits}"


class SplitBatchNorm1d(_Split, nn.BatchNorm1d):
    """See :class:`_Split`."""


class SplitBatchNorm2d(_Split, nn.BatchNorm2d):
    """See :class:`_Split`."""


class SplitBatchNormAct2d(_Split, BatchNormAct2d):
    """See :class:`_Split`. timm's batch norm, which has the activation in it."""

    def activate(self, features: Tensor) -> Tensor:
        return self.act(self.drop(features))


SPLIT = {nn.BatchNorm1d: SplitBatchNorm1d, nn.BatchNorm2d: SplitBatchNorm2d, BatchNormAct2d: SplitBatchNormAct2d}


def split_batch_norms(module: nn.Module, num_splits: int) -> None:
    """Let every batch norm of ``module`` see a batch as ``num_splits`` parts; 1 leaves all as it is.

    Raises:
        InputError: synchronised batch norm, whose statistics are those of all processes.
    """
    if num_splits == 1:
        return
    for child in module.modules():
        if isinstance(child, nn.SyncBatchNorm):
            raise InputError("MODEL.BN_SPLITS splits what syncBN joins: set it to 1, or the NORM keys to BN")
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            # The class that it normalises by: fast-reid's batch norms differ from torch's only when they are made.
            plain = next((p for p in SPLIT if isinstance(child, p) and type(child).forward is p.forward), None)
            if plain is None:
                raise InputError(f"MODEL.BN_SPLITS cannot split a {type(child).__name__} of this backbone: set it to 1")
            child.__class__ = SPLIT[plain]  # keeps parameters, buffers, hooks and mode
            child.num_splits = num_splits


def splits_per_process(cfg: CfgNode, processes: int) -> int:
    """Into how many parts each process splits its share, for ``MODEL.BN_SPLITS`` parts of the whole batch.

    Raises:
        InputError: the batch, or the parts, cannot be shared out evenly, or a part is one image.
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
