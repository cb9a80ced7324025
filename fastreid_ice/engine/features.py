"""Features of a whole dataset, in dataset order, over all processes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fastreid.evaluation.evaluator import inference_context
from fastreid.utils import comm
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..compat.training import mixed_precision
from ..progress import progress


def autocast(device: torch.device, amp: bool) -> torch.autocast:
    """The precision in which features are extracted for clustering and evaluation: that of training, if ``amp``."""
    precision = mixed_precision(device) if amp else None
    return torch.autocast(device.type, precision, enabled=precision is not None)


def extract_features(
    model: nn.Module, loader: DataLoader, encoder: str, *, amp: bool = False, flip: bool = False
) -> tuple[Tensor, Tensor]:
    """The features of every image that the processes' loaders hold together.

    On a GPU nothing waits for a batch to be done: while the network runs, the loader brings the next images, and
    features come back by themselves, into page-locked memory of their own size.

    Args:
        model: a ``MomentumReID``; run in evaluation mode and left as it was.
        loader: this process's contiguous part of the dataset, as ``build_feature_loader`` gives it.
        encoder: "online" or "momentum".
        amp: run the network under autocast, where the device gains by it.
        flip: average the features of each image and its mirror image, as fast-reid's TEST.FLIP does; twice the time.

    Returns:
        (N, D) float32 unit rows on the CPU, in dataset order, equal in all processes; and (N,) bool, False for an image
        that could not be read (its row is zero).
    """
    device = model.device
    features, readable = [], []
    with inference_context(model), torch.inference_mode(), autocast(device, amp):
        for batch in progress(loader, f"Extracting {encoder} features"):
            images = batch["images"].to(device, non_blocking=True)
            rows = model.encode(images, encoder).float()
            if flip:
                rows = (rows + model.encode(images.flip(3), encoder).float()) / 2
            readable.append(batch["readable"].bool())
            features.append(F.normalize(rows).to("cpu", non_blocking=True))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    mine = (torch.cat(features), torch.cat(readable)) if features else None
    parts = [part for part in comm.all_gather(mine) if part is not None]
    usable = torch.cat([flags for _, flags in parts])
    return torch.cat([rows for rows, _ in parts]).mul_(usable[:, None]), usable
