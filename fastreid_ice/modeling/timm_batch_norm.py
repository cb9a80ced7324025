"""timm's batch norm, which includes the activation, over parts of a batch."""

from __future__ import annotations

from timm.layers import BatchNormAct2d
from torch import Tensor

from .batch_norm import SPLIT, Split


class SplitBatchNormAct2d(Split, BatchNormAct2d):
    """See ``Split``."""

    def activate(self, features: Tensor) -> Tensor:
        return self.act(self.drop(features))


SPLIT[BatchNormAct2d] = SplitBatchNormAct2d
