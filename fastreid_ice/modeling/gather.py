"""Treating the batches of several processes as one.

With one process that does not split its batch, everything here is the identity.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from fastreid.utils import comm
from torch import Tensor


def gather_batch(tensor: Tensor) -> Tensor:
    """The batch of all processes, (W * B, ...), in the order of their ranks.

    Differentiable: if every process computes the same loss from it and DistributedDataParallel averages the gradients,
    the result is the gradient of that loss.
    """
    return _Gather.apply(tensor) if comm.get_world_size() > 1 else tensor


def encode_shuffled(encode: Callable[[Tensor], Tensor], images: Tensor, bn_splits: int = 1) -> Tensor:
    """``encode`` on the images of all processes, shuffled over them, without gradient; features in the original order.

    Batch norm then combines an image with other images than the loss does, so that its statistics do not reveal which
    keys belong to a query (shuffled batch normalisation, He et al., "Momentum Contrast", CVPR 2020, sec. 3.3).

    Args:
        encode: (B, ...) images to (B, D) features.
        images: (B, ...) images of this process, the same number in each.
        bn_splits: parts into which batch norm splits the batch of a process; with several, one process shuffles too.

    Returns:
        (W * B, D) features of all processes' images.
    """
    processes = comm.get_world_size()
    if processes == bn_splits == 1:
        return encode(images)
    everything = gather_batch(images)
    order = torch.randperm(len(everything), device=images.device)
    if processes > 1:
        dist.broadcast(order, src=0)
    mine = order.chunk(processes)[comm.get_rank()]
    features = gather_batch(encode(everything[mine]))
    return torch.empty_like(features).index_copy_(0, order, features)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(comm.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        # It is the same in all processes, which share the loss; times W undoes DistributedDataParallel's mean.
        return gradient.chunk(comm.get_world_size())[comm.get_rank()] * comm.get_world_size()
