"""Crops in batches of positions: decoded, resized, and kept in memory if ``DATALOADER.CACHE`` asks for it.

A batch is a dict of tensors: ``images`` (B, 3, H, W) uint8, and (B,) int64 columns (labels, cameras, ...).
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from fastreid.data.data_utils import read_image
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError

Transform = Callable[[Image.Image], Tensor]


class CropCache:
    """N crops in memory that this process shares with the processes it forks; the first to decode a crop stores it.

    With all crops stored it takes N x H x W x 3 bytes, 1.3 GB for the 12,936 of Market-1501 at 256 x 128, in each of
    the processes that train. It is anonymous memory, which the system provides page by page as images are stored, and
    takes back with the last process. /dev/shm, which is small in containers, is not used.

    Args:
        num_images: N.
        size: (H, W).
        copies: the number of processes on this machine that make such a cache.

    Attributes:
        images: (N, 3, H, W) uint8, black if not stored yet.
        filled: (N,) bool, whether an image is stored.

    Raises:
        InputError: there is not enough memory for all images, or the system cannot fork.
    """

    def __init__(self, num_images: int, size: tuple[int, int], *, copies: int = 1) -> None:
        if "fork" not in multiprocessing.get_all_start_methods():
            raise InputError("DATALOADER.CACHE ram needs a system that can fork processes; use DATALOADER.CACHE none")
        height, width = size
        bytes_needed = cache_bytes(num_images, size)
        if copies * bytes_needed > available_memory():
            raise InputError(
                f"DATALOADER.CACHE ram: {num_images} crops of {height} x {width} take "
                f"{copies * bytes_needed / 1e9:.1f} GB in {copies} process(es), and {available_memory() / 1e9:.1f} GB "
                "are free; use DATALOADER.CACHE none, a smaller INPUT.SIZE_TRAIN, or give the container more memory"
            )
        memory = torch.frombuffer(mmap.mmap(-1, bytes_needed), dtype=torch.uint8)
        self.filled = memory[:num_images].view(torch.bool)
        self.images = memory[num_images:].view(num_images, 3, height, width)


def cache_bytes(num_images: int, size: tuple[int, int]) -> int:
    """What a ``CropCache`` takes with all crops stored."""
    height, width = size
    return num_images * (3 * height * width + 1)


def available_memory(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process can still allocate, within the limit of its container if ``group`` states one."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except OSError:  # not Linux: all memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no container, or "max", which is no limit
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        kinds = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        files = int(kinds["active_file"]) + int(kinds["inactive_file"])  # cached files, dropped when memory is needed
        free = min(free, limit - used + files)
    return free


class Crops(Dataset):
    """N image files, each decoded and resized once per batch, or only once with a cache.

    An item is a whole batch: ``crops[[3, 1]]`` holds images 3 and 1. As in fast-reid, every mode of Pillow becomes
    8-bit RGB, an image is rotated according to its EXIF tag, and resizing is bicubic.

    Args:
        paths: N image files, or what ``Image.open`` gave for them.
        size: (H, W) of the crops.
        columns: name -> (N,) int64 tensor; entry i is returned with image i.
        cache: a cache for the same N images and size.
        transforms: view name -> transform of single images; if there are any, these views replace ``images``.
        skip_unreadable: return a black image and ``readable`` 0 instead of raising an error.
    """

    def __init__(
        self,
        paths: Sequence[str | Image.Image],
        size: tuple[int, int],
        columns: Mapping[str, Tensor],
        *,
        cache: CropCache | None = None,
        transforms: Mapping[str, Transform] | None = None,
        skip_unreadable: bool = False,
    ) -> None:
        self.paths = paths
        self.size = size
        self.columns = columns
        self.cache = cache
        self.transforms = transforms or {}
        self.skip_unreadable = skip_unreadable

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        index = torch.as_tensor(indices)
        images, readable = self._load(index)
        batch = {name: column[index] for name, column in self.columns.items()}
        batch |= {"indices": index, "readable": readable.long()}
        if not self.transforms:
            return batch | {"images": images}
        pictures = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).contiguous().numpy()]
        views = self.transforms.items()
        return batch | {view: torch.stack([transform(picture) for picture in pictures]) for view, transform in views}

    def _load(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) uint8, and (B,) bool, False for images that cannot be read."""
        if self.cache is None:
            distinct, places = index.unique(return_inverse=True)  # small clusters recur within a batch
            images = torch.zeros(len(distinct), 3, *self.size, dtype=torch.uint8)
            readable = [self._decode(i, image) for i, image in zip(distinct.tolist(), images, strict=True)]
            return images[places], torch.tensor(readable)[places]
        for i in index[~self.cache.filled[index]].unique().tolist():
            self.cache.filled[i] = self._decode(i, self.cache.images[i])
        return self.cache.images[index], self.cache.filled[index]

    def _decode(self, index: int, out: Tensor) -> bool:
        """Writes one image to ``out`` (3, H, W); returns False if it cannot be read."""
        height, width = self.size
        try:
            image = read_image(self.paths[index])
        except OSError as error:
            if not self.skip_unreadable:
                raise InputError(
                    f"{error}; remove it, or skip such training images with DATALOADER.UNREADABLE skip"
                ) from error
            return False
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        out.copy_(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        return True


class LabelledCrops(Crops):
    """Crops for training: ``columns["targets"]`` holds the pseudo labels of the epoch.

    With ``skip_unreadable``, an image that was readable when its epoch was clustered, but is no longer, is replaced by
    the next one with its label; the next clustering leaves it out and counts it.
    """

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        batch = super().__getitem__(indices)
        if batch["readable"].all():
            return batch
        pairs = zip(batch["indices"].tolist(), batch["readable"].tolist(), strict=True)
        return super().__getitem__([index if readable else self._substitute(index) for index, readable in pairs])

    def _substitute(self, index: int) -> int:
        """The next readable image with the label of image ``index``."""
        targets = self.columns["targets"]
        same = (targets == targets[index]).nonzero().flatten()
        for other in torch.cat([same[same > index], same[same < index]]):
            if self._load(other[None])[1].item():
                return int(other)
        raise InputError(
            f"none of the {len(same)} images of one cluster can be read any more, among them {self.paths[index]}; "
            "is their folder still there?"
        )
