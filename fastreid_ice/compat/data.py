"""Datasets, images, transforms and loaders."""

from __future__ import annotations

import glob
import inspect
import os
import re
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import fastreid.data.build
import fastreid.data.common
import fastreid.data.data_utils
import fastreid.data.datasets as datasets
import fastreid.data.samplers as samplers
import fastreid.data.transforms.build
import fastreid.data.transforms.functional
import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from ._registry import patch, replace
from .workers import fast_batch_collator, restore_dataset


@patch
def data_loader() -> None:
    """fastreid's DataLoaderX needs a GPU, leaks a thread per epoch, and hangs for ever on a corrupt image.

    Replaced by a plain DataLoader, which returns CPU tensors; ``modeling.inputs_to_device`` moves them.
    Until DataLoaderX runs without CUDA, stops its thread and passes on the exceptions of its workers.
    """
    replace(fastreid.data.data_utils.DataLoaderX, PlainDataLoader)


@patch
def batch_collator() -> None:
    """fast_batch_collator turns numpy numbers, tuples and lists into None, silently.

    Until it collates or refuses them.
    """
    replace(fastreid.data.build.fast_batch_collator, fast_batch_collator)


@patch
def dataset_pickle() -> None:
    """Spawned loader workers unpickle CommDataset and so import fastreid without the aliases of imports.py, and die.

    Its pickle names this package first, so that importing fastreid applies them. Until fastreid can be imported alone.
    """
    fastreid.data.common.CommDataset.__reduce__ = _reduce_dataset


@patch
def image_modes() -> None:
    """read_image reads palette images with wrong colours, makes RGBA, CMYK and LA images fail later with a size error,
    refuses 1 and 16 bit images, does not say which file is broken, and waits for ever at a named pipe.

    Until it converts to RGB, names the file, and refuses anything but regular files.
    """
    replace(fastreid.data.data_utils.read_image, read_image)


@patch
def image_tensor() -> None:
    """to_tensor copies through torch.ByteStorage, which torch >= 2.0 deprecates and will remove, and asks numpy for
    ``copy=False``, which numpy 2 refuses for the modes 1, I and F.

    Until it goes through numpy.
    """
    replace(fastreid.data.transforms.functional.to_tensor, to_tensor)


@patch
def random_affine() -> None:
    """INPUT.AFFINE.ENABLED ends in ``unexpected keyword argument 'resample'`` on torchvision >= 0.15.

    Until fastreid calls RandomAffine with ``interpolation`` and ``fill``.
    """
    if "resample" not in inspect.signature(T.RandomAffine).parameters:
        module = fastreid.data.transforms.build
        module.T = SimpleNamespace(**{**vars(T), "RandomAffine": _affine_with_old_names})


@patch
def dataset_listing() -> None:
    """Market1501, DukeMTMC and VeRi list their files in the order of the file system, so that equal seeds give
    different runs on two machines; search for person and camera in the whole path, so that a folder named run_12_c3
    makes all images one identity; and fail on a strange name with ``'NoneType' object has no attribute 'groups'``.

    Until they sort, match the file's name, and name the file that does not fit.
    """
    market, duke, veri = r"(-?\d+)_c(\d)", r"(-?\d+)_c(\d)", r"(\d+)_c(\d\d\d)"
    datasets.Market1501.process_dir = _process_dir(market, max_pid=1501, max_camera=6)
    datasets.DukeMTMC.process_dir = _process_dir(duke, max_pid=None, max_camera=8)
    datasets.VeRi.process_dir = _process_dir(veri, max_pid=776, max_camera=20)


@patch
def identity_samplers() -> None:
    """BalancedIdentitySampler and NaiveIdentitySampler loop for ever, without a message, when there are fewer
    identities than a batch takes, or when a batch does not divide into groups of DATALOADER.NUM_INSTANCE.

    Until they check.
    """
    for cls in (samplers.BalancedIdentitySampler, samplers.NaiveIdentitySampler):
        cls.__init__ = _checking_identities(cls.__init__)


class PlainDataLoader(DataLoader):
    """Replaces ``DataLoaderX(local_rank, **kwargs)``."""

    def __init__(self, local_rank: int, *, pin_memory: bool = False, **kwargs: Any):
        super().__init__(pin_memory=pin_memory and torch.cuda.is_available(), **kwargs)

    def shutdown(self) -> None:
        """Nothing to stop: there is no thread."""


def _reduce_dataset(self: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    return restore_dataset, (type(self).__module__, type(self).__qualname__, self.__dict__)


def read_image(file_name: str | Image.Image, format: str | None = None) -> Image.Image:
    """Read an image as RGB, upright by its EXIF tag.

    Args:
        file_name: path of the image, or what ``Image.open`` gave for it, so that a caller can look at it before it is
            decoded.
        format: another mode of PIL, or "BGR".

    Raises:
        OSError: the file is missing, broken, not an image, or not a regular file; the message names it.
    """
    try:
        if isinstance(file_name, Image.Image):
            return _decoded(file_name, format)
        if os.path.exists(file_name) and not os.path.isfile(file_name):
            raise OSError("it is not a regular file")  # opening a pipe waits for its writer
        with fastreid.data.data_utils.PathManager.open(file_name, "rb") as file:
            return _decoded(Image.open(file), format)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's, for broken files
        raise OSError(f"cannot read the image {file_name}: {error}") from error


def _decoded(image: Image.Image, format: str | None) -> Image.Image:
    with suppress(Exception):  # a picture with a broken EXIF block is still usable
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits; convert() would clip values above 255
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    image = image.convert("RGB" if format in (None, "BGR") else format)
    return Image.merge("RGB", image.split()[::-1]) if format == "BGR" else image


def to_tensor(pic: Image.Image | np.ndarray) -> torch.Tensor:
    """Copies an image (H, W) or (H, W, C) to a tensor (C, H, W); 8 bits become float32 in [0, 255]."""
    array = np.array(pic.convert("L") if isinstance(pic, Image.Image) and pic.mode == "1" else pic)
    image = torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)
    dtype = torch.float32 if image.dtype == torch.uint8 else image.dtype
    return image.to(dtype, memory_format=torch.contiguous_format).contiguous()


def _affine_with_old_names(*, resample: Any, fillcolor: Any, **kwargs: Any) -> T.RandomAffine:
    return T.RandomAffine(fill=fillcolor, **kwargs)


def _checking_identities(init: Callable[..., None]) -> Callable[..., None]:
    def initialise(self: Any, data_source: Any, mini_batch_size: int, num_instances: int, *args: Any, **kwargs: Any):
        init(self, data_source, mini_batch_size, num_instances, *args, **kwargs)
        if mini_batch_size % num_instances:
            raise ValueError(
                f"a batch of {mini_batch_size} images in each process does not divide into DATALOADER.NUM_INSTANCE = "
                f"{num_instances} of an identity: change it or SOLVER.IMS_PER_BATCH"
            )
        # The balanced sampler draws the batches of all processes together.
        processes = self._world_size if isinstance(self, samplers.BalancedIdentitySampler) else 1
        needed = processes * mini_batch_size // num_instances
        if self.num_identities < needed:
            raise ValueError(
                f"a batch takes {needed} identities, and the training set has {self.num_identities}: lower "
                "SOLVER.IMS_PER_BATCH or raise DATALOADER.NUM_INSTANCE"
            )

    return initialise


def _process_dir(pattern: str, *, max_pid: int | None, max_camera: int) -> Callable[..., list[tuple]]:
    """A ``process_dir(self, dir_path, is_train=True)`` that lists (path, person, camera) in the order of the names."""
    compiled = re.compile(pattern)

    def process_dir(self: Any, dir_path: str, is_train: bool = True) -> list[tuple]:
        items: list[tuple] = []
        for path in sorted(glob.glob(os.path.join(glob.escape(dir_path), "*.jpg"))):
            match = compiled.search(os.path.basename(path))
            pid, camera = map(int, match.groups()) if match else (None, None)
            if pid == -1 and max_pid is not None:
                continue  # junk
            if pid is None or not 1 <= camera <= max_camera or (max_pid is not None and not 0 <= pid <= max_pid):
                raise ValueError(
                    f"{path}: {type(self).__name__} reads person and camera from names like {compiled.pattern!r}, "
                    f"cameras 1 to {max_camera}" + (f", persons up to {max_pid}" if max_pid else "")
                )
            camera -= 1
            if is_train:
                items.append((path, f"{self.dataset_name}_{pid}", f"{self.dataset_name}_{camera}"))
            else:
                items.append((path, pid, camera))
        return items

    return process_dir
