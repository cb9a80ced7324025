"""From the config to datasets: the training set, and the listings of the test sets."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from fastreid.config import CfgNode
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset
from fastreid.utils import comm
from torch import Tensor

from ..config import lookup
from ..core import ImageTable
from ..errors import InputError
from .corrections import read_corrections
from .crops import CropCache
from .metadata import facts_of
from .views import crop_size


@dataclass(frozen=True)
class TrainingSet:
    """N unlabelled crops in a fixed order.

    Args:
        paths: N files.
        known: what the datasets know of each image; cameras in 0..number of cameras - 1. True identities are only for
            measuring the quality of pseudo labels and for the upper bound.
        cache: a cache of their crops at ``INPUT.SIZE_TRAIN``.
        camera_names: the name of each camera.
    """

    paths: list[str]
    known: ImageTable
    cache: CropCache | None = None
    camera_names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def cameras(self) -> Tensor:
        """(N,) int64, -1 where not known."""
        return self.known.cameras

    @property
    def identities(self) -> Tensor:
        """(N,) int64, -1 where not known."""
        return self.known.identities

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the paths, in order and relative to their common folder; equal for equal listings."""
        paths = [os.path.abspath(path) for path in self.paths]
        start = len(os.path.commonpath(paths))
        return hashlib.blake2b(os.fsencode("\0".join(path[start:] for path in paths)), digest_size=16).hexdigest()

    @property
    def named_cameras(self) -> list[str]:
        """The name of each image's camera, "" if it is not known."""
        return [self.camera_names[camera] if camera >= 0 else "" for camera in self.cameras.tolist()]


def build_dataset(cfg: CfgNode, name: str) -> ImageDataset:
    """The registered dataset ``name``, in the folder that ``DATASETS.ROOT`` names.

    If that is empty, the folder is that of the environment variable FASTREID_DATASETS, by default ``datasets``. A
    dataset with a ``from_config(cfg)`` gets its keyword arguments from it.

    Raises:
        InputError: no dataset has this name, or its files are missing or not as expected.
    """
    cls = lookup(DATASET_REGISTRY, name, "DATASETS.NAMES or DATASETS.TESTS")
    options = cls.from_config(cfg) if hasattr(cls, "from_config") else {}
    with _explaining(cfg, name):
        return cls(root=_root(cfg), **options)


def listing_of(cfg: CfgNode, dataset: ImageDataset, name: str, part: str) -> list[tuple]:
    """fast-reid's (path, person, camera) of one part of a dataset, which many datasets do not read before this.

    Raises:
        InputError: its files are missing or not as expected, or there are none.
    """
    with _explaining(cfg, name):
        items = getattr(dataset, part)
        if not items:
            raise ValueError(f"its {part} part has no image")
    return items


def build_training_set(cfg: CfgNode) -> TrainingSet:
    """The images of ``DATASETS.NAMES``, one dataset after the other, each sorted by path.

    Raises:
        InputError: as ``build_dataset``; a dataset without training images, or too large for ``DATALOADER.CACHE``; a
            file ``CORRECTIONS`` that does not fit them.
    """
    items, facts = [], []
    for name in cfg.DATASETS.NAMES:
        dataset = build_dataset(cfg, name)
        listing = sorted(listing_of(cfg, dataset, name, "train"))
        items += listing
        # Tracks have the name of the dataset, as cameras do, to distinguish those of several.
        facts += [(name, *known) for known in facts_of(dataset, [path for path, *_ in listing])]
        if comm.is_main_process():
            dataset.show_train()
    paths, identities, cameras = zip(*items, strict=True)
    cache = None
    if cfg.DATALOADER.CACHE == "ram":
        cache = CropCache(len(paths), crop_size(cfg, "SIZE_TRAIN"), copies=comm.get_local_size())
    names = [str(camera) for camera in _distinct(cameras)]
    if len(cfg.DATASETS.NAMES) == 1:  # fast-reid prefixes the dataset, to distinguish those of several
        names = [name.removeprefix(f"{getattr(dataset, 'dataset_name', '')}_") for name in names]
    known = ImageTable(
        cameras=_numbered(cameras),
        tracks=_numbered(tuple(None if track is None else (name, track) for name, _, track, _ in facts)),
        times=torch.tensor([-1 if time is None else time for *_, time in facts], dtype=torch.float64),
        identities=_numbered(identities),
        # The first process clusters, and only its machine needs the file.
        corrections=read_corrections(cfg.CORRECTIONS, paths) if cfg.CORRECTIONS and comm.is_main_process() else None,
    )
    return TrainingSet(list(paths), known, cache, names)


def existing_tests(cfg: CfgNode) -> tuple[str, ...]:
    """``DATASETS.TESTS`` without datasets that have nothing to evaluate, by their ``has_test_set``."""
    classes = {name: lookup(DATASET_REGISTRY, name, "DATASETS.TESTS") for name in cfg.DATASETS.TESTS}
    return tuple(
        name for name, cls in classes.items() if not hasattr(cls, "has_test_set") or cls.has_test_set(cfg.DATASETS.ROOT)
    )


def has_unchecked_images(cfg: CfgNode) -> bool:
    """Whether images of a dataset to train on may be broken, since they are a user's own (``unchecked_images``)."""
    classes = (lookup(DATASET_REGISTRY, name, "DATASETS.NAMES") for name in cfg.DATASETS.NAMES)
    return any(getattr(cls, "unchecked_images", False) for cls in classes)


def _numbered(values: tuple) -> Tensor:
    """Each value as its position among the sorted values, None as -1."""
    number = {value: i for i, value in enumerate(_distinct(values))} | {None: -1}
    return torch.tensor([number[value] for value in values])


def _distinct(values: tuple) -> list:
    return sorted(set(values) - {None})


@contextmanager
def _explaining(cfg: CfgNode, name: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (AssertionError, OSError, RuntimeError, ValueError) as error:
        root = _root(cfg)
        raise InputError(
            f"dataset {name}: {error}{_where_it_may_be(root, str(error))} (the folder of all datasets is {root!r}; "
            "DATASETS.ROOT names another, or the environment variable FASTREID_DATASETS)"
        ) from error


def _where_it_may_be(root: str, error: str) -> str:
    """The end of a message about a folder that fast-reid has not found: it is one level too deep, or not unpacked."""
    missing = re.search('"(.+)" is not found', error)
    if not missing:
        return ""
    folder, name = os.path.split(missing[1])
    found = sorted(glob.glob(os.path.join(glob.escape(folder), "*", name)))
    if found:
        return f"; it is in {os.path.dirname(found[0])!r}: move what is there into {folder!r}"
    archives = sorted(path for place in (folder, root) for path in glob.glob(os.path.join(glob.escape(place), "*.zip")))
    return f"; unpack {archives[0]!r} first" if archives else ""


def _root(cfg: CfgNode) -> str:
    return cfg.DATASETS.ROOT or os.environ.get("FASTREID_DATASETS", "datasets")
