"""Features of a whole dataset, in dataset order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from fastreid.evaluation.evaluator import inference_context
from fastreid.utils import comm
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..compat.training import mixed_precision
from ..progress import progress

CPU_PIXELS = 2**20  # that a CPU encodes at a time, 32 images of 256 x 128: more do not fit its caches


def extract_features(
    model: nn.Module, loader: DataLoader, encoder: str, *, amp: bool = False, flip: bool = False
) -> tuple[Tensor, Tensor]:
    """The features of all images, of which each process's loader holds a part.

    Args:
        model, amp, flip: as for ``encode_images``.
        loader: this process's contiguous part of the dataset, from ``build_feature_loader``.
        encoder: "online" or "momentum".

    Returns:
        (N, D) float32 unit rows on the CPU, in dataset order, the same in all processes; and (N,) bool, False for an
        image that could not be read (its row is zero).
    """
    title = f"Extracting {encoder} features"
    features, columns = encode_images(model, loader, (encoder,), title=title, amp=amp, flip=flip)
    mine = (F.normalize(features[encoder], out=features[encoder]), columns["readable"].bool()) if columns else None
    parts = [part for part in comm.all_gather(mine) if part is not None]
    usable = torch.cat([flags for _, flags in parts])
    return torch.cat([rows for rows, _ in parts]).mul_(usable[:, None]), usable


def encode_images(
    model: nn.Module, loader: DataLoader, encoders: Sequence[str], *, title: str, amp: bool = False, flip: bool = False
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The features of the images of this process's loader; each image is read once for all encoders.

    On a GPU the host does not wait for a batch: while the network runs, the loader prepares the next images, and
    features are copied asynchronously into page-locked memory of their own size.

    Args:
        model: a ``MomentumReID``; run in evaluation mode, its own mode is restored.
        loader: batches of ``images`` and further columns.
        encoders: "online", "momentum" or both.
        title: the title of the progress bar.
        amp: run the network under autocast, if that is faster on the device.
        flip: average the features of each image and its mirror image, like fast-reid's TEST.FLIP; takes twice the time.

    Returns:
        Encoder -> (n, D) float32 features on the CPU, and the other columns of the loader, (n,) each, both in its
        order; both empty if the loader has no image.
    """
    device = model.device
    precision = mixed_precision(device) if amp else None
    autocast = torch.autocast(device.type, precision, enabled=precision is not None)
    features, columns = defaultdict(list), defaultdict(list)
    with inference_context(model), torch.inference_mode(), autocast:
        for batch in progress(loader, title):
            images = batch["images"].to(device, non_blocking=True)
            for encoder in encoders:
                rows = _encode(model, images, encoder)
                if flip:
                    rows = (rows + _encode(model, images.flip(3), encoder)) / 2
                features[encoder].append(rows.to("cpu", non_blocking=True))
            for name in batch.keys() - {"images"}:
                columns[name].append(batch[name])
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return tuple({name: torch.cat(parts) for name, parts in lists.items()} for lists in (features, columns))


def _encode(model: nn.Module, images: Tensor, encoder: str) -> Tensor:
    """(B, D) float32, on a CPU in parts that take less time than the whole."""
    if images.device.type != "cpu":
        return model.encode(images, encoder).float()
    parts = images.split(max(CPU_PIXELS // images[0, 0].numel(), 1))
    return torch.cat([model.encode(part, encoder).float() for part in parts])
