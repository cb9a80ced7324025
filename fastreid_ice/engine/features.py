"""Features of a whole dataset, in dataset order, over all processes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fastreid.evaluation.evaluator import inference_context
from fastreid.utils import comm
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..progress import progress


def extract_features(model: nn.Module, loader: DataLoader, encoder: str) -> tuple[Tensor, Tensor]:
    """The features of every image that the processes' loaders hold together.

    Args:
        model: a ``MomentumReID``; run in evaluation mode and left as it was.
        loader: this process's contiguous part of the dataset, as ``build_feature_loader`` gives it.
        encoder: "online" or "momentum".

    Returns:
        (N, D) float32 unit rows on the CPU, in dataset order, equal in all processes; and (N,) bool, False for an image
        that could not be read (its row is zero).
    """
    features, readable = [], []
    with inference_context(model), torch.inference_mode():
        for batch in progress(loader, f"Extracting {encoder} features"):
            rows = F.normalize(model.encode(batch["images"], encoder).float()).cpu()
            readable.append(batch["readable"].bool())
            features.append(rows * batch["readable"][:, None])
    mine = (torch.cat(features), torch.cat(readable)) if features else None
    parts = [part for part in comm.all_gather(mine) if part is not None]
    return torch.cat([rows for rows, _ in parts]), torch.cat([flags for _, flags in parts])
