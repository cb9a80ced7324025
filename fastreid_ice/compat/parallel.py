"""Several processes."""

from __future__ import annotations

import pickle
from typing import Any

import fastreid.engine.defaults
import torch
import torch.distributed as dist
from fastreid.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ._registry import patch, replace


@patch
def parallel_on_cpu() -> None:
    """DefaultTrainer passes device_ids to DistributedDataParallel, which refuses them for a model on the CPU.

    Until it passes them on CUDA only.
    """
    fastreid.engine.defaults.DistributedDataParallel = AnyDeviceParallel


@patch
def gathered_bytes() -> None:
    """comm.gather and comm.all_gather pickle through torch.ByteStorage, which torch >= 2.0 deprecates and will remove.

    Until they use a tensor.
    """
    replace(comm._serialize_to_tensor, serialize_to_tensor)


class AnyDeviceParallel(DistributedDataParallel):
    """DistributedDataParallel that accepts ``device_ids`` for a model on the CPU too, and ignores them there."""

    def __init__(self, module: nn.Module, device_ids: list[int] | None = None, **kwargs: Any):
        on_cpu = next(module.parameters()).device.type == "cpu"
        super().__init__(module, device_ids=None if on_cpu else device_ids, **kwargs)


def serialize_to_tensor(data: Any, group: Any) -> torch.Tensor:
    """The pickle of ``data`` as bytes on the device from which ``group`` communicates."""
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    return torch.frombuffer(bytearray(pickle.dumps(data)), dtype=torch.uint8).to(device)
