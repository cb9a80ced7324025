"""From the config to images: the training set, and the loaders over it and over the test sets."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from fastreid.config import CfgNode
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset
from fastreid.data.samplers import InferenceSampler
from fastreid.data.transforms import build_transforms
from fastreid.utils import comm
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from ..config import InputError, lookup
from .folder import is_labelled
from .sampler import IdentitySampler
from .views import ImageViews, LabelledViews, Transform, build_strong_transform, build_weak_transform


@dataclass(frozen=True)
class TrainingSet:
    """N unlabelled crops in a fixed order.

    Args:
        paths: N files.
        cameras: (N,) int64 in 0..number of cameras - 1, -1 where a dataset does not know them.
        identities: (N,) int64, the truth, -1 where a dataset does not know it: for measuring pseudo labels and for the
            upper bound.
    """

    paths: list[str]
    cameras: Tensor
    identities: Tensor

    def __len__(self) -> int:
        return len(self.paths)


def build_dataset(cfg: CfgNode, name: str) -> ImageDataset:
    """The registered dataset ``name``, in the folder that ``DATASETS.ROOT`` names.

    Where that is empty, it is the folder that the variable FASTREID_DATASETS names, ``datasets`` by default. A dataset
    with a ``from_config(cfg)`` gets its keyword arguments from there.

    Raises:
        InputError: no dataset of this name, or its files are missing or do not look as they should.
    """
    cls = lookup(DATASET_REGISTRY, name, "DATASETS.NAMES or DATASETS.TESTS")
    options = cls.from_config(cfg) if hasattr(cls, "from_config") else {}
    with _explaining(cfg, name):
        return cls(root=_root(cfg), **options)


def build_training_set(cfg: CfgNode) -> TrainingSet:
    """The images of ``DATASETS.NAMES``, one dataset after the other, each sorted by path.

    Raises:
        InputError: as ``build_dataset``, or a dataset without a training image.
    """
    items = []
    for name in cfg.DATASETS.NAMES:
        dataset = build_dataset(cfg, name)
        items += sorted(_listing(cfg, dataset, name, "train"))
        if comm.is_main_process():
            dataset.show_train()
    paths, identities, cameras = zip(*items, strict=True)
    return TrainingSet(list(paths), cameras=_numbered(cameras), identities=_numbered(identities))


def build_feature_loader(cfg: CfgNode, training_set: TrainingSet) -> DataLoader:
    """The training set in order, under the test transform; this process's contiguous part of it."""
    dataset = ImageViews(
        training_set.paths,
        {"images": build_transforms(cfg, is_train=False)},
        {},
        skip_unreadable=cfg.DATALOADER.UNREADABLE == "skip",
    )
    return _inference_loader(cfg, dataset)


def existing_tests(cfg: CfgNode) -> tuple[str, ...]:
    """``DATASETS.TESTS`` without an UnlabeledFolder whose folder has nothing to evaluate."""
    return tuple(name for name in cfg.DATASETS.TESTS if name != "UnlabeledFolder" or is_labelled(cfg.DATASETS.ROOT))


def build_test_loader(cfg: CfgNode, name: str) -> tuple[DataLoader, int]:
    """Query, then gallery of a dataset, and the number of query images, as fast-reid's evaluator expects them."""
    data = build_dataset(cfg, name)
    query, gallery = (_listing(cfg, data, name, part) for part in ("query", "gallery"))
    if comm.is_main_process():
        data.show_test()
    paths, identities, cameras = zip(*query, *gallery, strict=True)
    columns = {"targets": torch.tensor(identities), "camids": torch.tensor(cameras)}
    dataset = ImageViews(paths, {"images": build_transforms(cfg, is_train=False)}, columns)
    return _inference_loader(cfg, dataset), len(query)


class PseudoLabelLoader:
    """The training loader, whose labels change every epoch: an endless iterator of batches, restarted by ``reset``.

    ``dataset`` answers what fast-reid's DefaultTrainer asks of a loader: its length sets the iterations per epoch, and
    0 classes say that no classifier is trained.

    Args:
        training_set: N images.
        transforms: view -> transform; the views that the losses ask for.
        batch_size: images per process and step.
        num_instances: images of one pseudo identity in a batch.
        camera_balanced: spread these over the cameras.
        iters_per_epoch: steps from one reset to the next.
        skip_unreadable: as for ``LabelledViews``.
        num_workers: decoding processes; 0 decodes in this one.
        rank, world_size: this process among those that share a batch.
    """

    def __init__(
        self,
        training_set: TrainingSet,
        transforms: Mapping[str, Transform],
        *,
        batch_size: int,
        num_instances: int,
        camera_balanced: bool,
        iters_per_epoch: int,
        skip_unreadable: bool = False,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.training_set = training_set
        self.transforms = transforms
        self.batch_size = batch_size
        self.num_instances = num_instances
        self.camera_balanced = camera_balanced
        self.skip_unreadable = skip_unreadable
        self.num_workers = num_workers
        self.rank = rank
        self.world_size = world_size
        self.dataset = _Epoch(iters_per_epoch * batch_size * world_size)
        self._batches: Iterator[dict[str, Tensor]] | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode, training_set: TrainingSet, views: frozenset[str]) -> PseudoLabelLoader:
        strong, weak = build_strong_transform(cfg), build_weak_transform(cfg)
        return cls(
            training_set,
            {view: weak if view.endswith("weak") else strong for view in sorted(views)},
            batch_size=cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(),
            num_instances=cfg.DATALOADER.NUM_INSTANCE,
            camera_balanced=cfg.DATALOADER.CAMERA_BALANCED,
            iters_per_epoch=cfg.SOLVER.ITERS_PER_EPOCH,
            skip_unreadable=cfg.DATALOADER.UNREADABLE == "skip",
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
        )

    def reset(self, labels: Tensor, seed: int | tuple[int, ...]) -> None:
        """Starts to draw batches for ``labels`` (N,), -1 for images that are left out."""
        self.close()
        sampler = IdentitySampler(
            labels,
            self.training_set.cameras,
            batch_size=self.batch_size,
            num_instances=self.num_instances,
            camera_balanced=self.camera_balanced,
            seed=seed,
            rank=self.rank,
            world_size=self.world_size,
        )
        columns = {"targets": labels, "camids": self.training_set.cameras}
        loader = DataLoader(
            LabelledViews(self.training_set.paths, self.transforms, columns, skip_unreadable=self.skip_unreadable),
            batch_sampler=BatchSampler(sampler, self.batch_size, drop_last=True),
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )
        self._batches = iter(loader)

    def close(self) -> None:
        """Ends the decoding processes."""
        self._batches = None

    def __iter__(self) -> PseudoLabelLoader:
        return self

    def __next__(self) -> dict[str, Tensor]:
        if self._batches is None:
            raise RuntimeError("PseudoLabelLoader has no labels yet; call reset(labels, seed) first")
        return next(self._batches)


@dataclass(frozen=True)
class _Epoch:
    length: int
    num_classes: int = 0

    def __len__(self) -> int:
        return self.length


def _inference_loader(cfg: CfgNode, dataset: ImageViews) -> DataLoader:
    batch_size = max(1, cfg.TEST.IMS_PER_BATCH // comm.get_world_size())
    return DataLoader(
        dataset,
        batch_sampler=BatchSampler(InferenceSampler(len(dataset)), batch_size, drop_last=False),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        pin_memory=torch.cuda.is_available(),
    )


def _numbered(values: tuple) -> Tensor:
    """Values as positions in their sorted order, None as -1."""
    number = {value: i for i, value in enumerate(sorted(set(values) - {None}))} | {None: -1}
    return torch.tensor([number[value] for value in values])


def _listing(cfg: CfgNode, dataset: ImageDataset, name: str, part: str) -> list[tuple]:
    """fast-reid's (path, person, camera) of one part, which many datasets read from the disk only now."""
    with _explaining(cfg, name):
        items = getattr(dataset, part)
        if not items:
            raise ValueError(f"its {part} part has no image")
    return items


@contextmanager
def _explaining(cfg: CfgNode, name: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"dataset {name}: {error} (the folder of all datasets is {_root(cfg)!r}; "
            "DATASETS.ROOT names another, or the environment variable FASTREID_DATASETS)"
        ) from error


def _root(cfg: CfgNode) -> str:
    return cfg.DATASETS.ROOT or os.environ.get("FASTREID_DATASETS", "datasets")
