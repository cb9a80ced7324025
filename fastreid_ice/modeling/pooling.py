"""Global average pooling whose gradient has the memory format of its input.

The gradient of torch's is contiguous. Where the input goes elsewhere as well, as in a squeeze-and-excitation gate, it
is added to a gradient in channels_last, and a sum of two memory formats takes fifteen times as long as of one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _GlobalAverage(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs: Tensor) -> Tensor:
        ctx.shape = inputs.shape
        innermost = inputs.is_contiguous(memory_format=torch.channels_last)
        ctx.memory_format = torch.channels_last if innermost else torch.contiguous_format
        return F.adaptive_avg_pool2d(inputs, 1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        height, width = ctx.shape[2:]
        return (gradient / (height * width)).expand(ctx.shape).contiguous(memory_format=ctx.memory_format)


class GlobalAverage(nn.AdaptiveAvgPool2d):
    """(B, C, H, W) to (B, C, 1, 1); values and gradients equal those of torch's."""

    def forward(self, inputs: Tensor) -> Tensor:
        if torch.is_grad_enabled() and inputs.requires_grad:
            return _GlobalAverage.apply(inputs)
        return super().forward(inputs)  # also what an export sees


def keep_memory_format(module: nn.Module) -> None:
    """Make every global average pooling of ``module`` a ``GlobalAverage``."""
    for child in module.modules():
        pools = isinstance(child, nn.AdaptiveAvgPool2d) and type(child).forward is nn.AdaptiveAvgPool2d.forward
        if pools and child.output_size in (1, (1, 1)):
            child.__class__ = GlobalAverage
