"""The loaders over the training set and over the test sets."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.data.samplers import InferenceSampler
from fastreid.utils import comm
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Sampler

from .augment import Augmentation
from .crops import CropCache, Crops, LabelledCrops, Transform, available_memory, cache_bytes
from .samplers import CurrentBatches, IdentitySampler
from .training_set import TrainingSet, build_dataset, listing_of
from .views import build_test_transform, build_transforms_of_views, build_views, crop_size

logger = logging.getLogger(f"fastreid.{__name__}")


def build_feature_loader(
    cfg: CfgNode, training_set: TrainingSet, batches: Sequence[Sequence[int]] | None = None
) -> DataLoader:
    """The training set in order at ``INPUT.SIZE_TEST``: the contiguous part of this process.

    Crops come from the cache if that size equals ``INPUT.SIZE_TRAIN``. The workers live as long as the loader.

    Args:
        batches: the indices of each batch of this process, instead of the training set in order.
    """
    same_size = crop_size(cfg, "SIZE_TEST") == crop_size(cfg, "SIZE_TRAIN")
    return _inference_loader(
        cfg,
        training_set.paths,
        {},
        batches,
        cache=training_set.cache if same_size else None,
        skip_unreadable=cfg.DATALOADER.UNREADABLE == "skip",
    )


def build_test_loader(cfg: CfgNode, name: str) -> tuple[DataLoader, int]:
    """The query and then the gallery of a dataset, and the number of queries, as fast-reid's evaluator expects them.

    ``images`` are uint8; networks convert them on their device. With ``DATALOADER.CACHE`` a further pass over the
    loader decodes nothing. The workers end with each pass.
    """
    data = build_dataset(cfg, name)
    query, gallery = (listing_of(cfg, data, name, part) for part in ("query", "gallery"))
    if comm.is_main_process():
        data.show_test()
    paths, identities, cameras = zip(*query, *gallery, strict=True)
    columns = {"targets": torch.tensor(identities), "camids": torch.tensor(cameras)}
    loader = _inference_loader(cfg, paths, columns, cache=_test_cache(cfg, name, len(paths)), keep_workers=False)
    return loader, len(query)


class PseudoLabelLoader:
    """The training loader, whose labels change every epoch: an endless iterator of batches, restarted by ``reset``.

    Workers decode each image once into a crop. The views are made from whole batches in this process, on ``device``,
    and depend only on the seed of the epoch, not on the number of workers. Workers are kept from epoch to epoch, except
    if ``transforms`` draw from their generators. A batch holds a (B, 3, H, W) float32 tensor in [0, 255] per view, on
    ``device``, and (B,) int64 ``targets``, ``camids``, ``indices`` and ``readable``.

    ``dataset`` provides what fast-reid's DefaultTrainer reads from a loader: its length determines the iterations per
    epoch, and 0 classes mean that no classifier is trained.

    Args:
        training_set: N images.
        size: (H, W) of the crops.
        views: view -> the augmentation that makes it from a batch of crops, for the views that the losses read.
        transforms: view -> the transform that makes it from a single crop, instead of ``views``.
        batch_size: images per process and step.
        num_instances: images of one pseudo identity in a batch.
        sampling: how these are drawn, see ``IdentitySampler``.
        iters_per_epoch: steps from one reset to the next.
        skip_unreadable: as in ``LabelledCrops``.
        num_workers: number of decoding processes; 0 decodes in this process.
        device: where views are made.
        rank, world_size: the number of this process, and of the processes that share a batch.
    """

    def __init__(
        self,
        training_set: TrainingSet,
        size: tuple[int, int],
        views: Mapping[str, Augmentation],
        *,
        batch_size: int,
        num_instances: int,
        sampling: str,
        iters_per_epoch: int,
        transforms: Mapping[str, Transform] | None = None,
        skip_unreadable: bool = False,
        num_workers: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.training_set = training_set
        self.views = views
        self.batch_size = batch_size
        self.num_instances = num_instances
        self.sampling = sampling
        self.num_workers = num_workers
        self.device = torch.device(device)
        self.rank = rank
        self.world_size = world_size
        self.dataset = _Epoch(iters_per_epoch * batch_size * world_size)
        # In shared memory, so that existing workers see the labels of a new epoch.
        self._labels = torch.full((len(training_set),), -1).share_memory_()
        self._crops = LabelledCrops(
            training_set.paths,
            size,
            {"targets": self._labels, "camids": training_set.cameras},
            cache=training_set.cache,
            transforms=transforms,
            skip_unreadable=skip_unreadable,
        )
        self._indices = CurrentBatches()
        self._generator = torch.Generator()
        self._loader: DataLoader | None = None
        self._batches: Iterator[dict[str, Tensor]] | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode, training_set: TrainingSet, views: frozenset[str]) -> PseudoLabelLoader:
        return cls(
            training_set,
            crop_size(cfg, "SIZE_TRAIN"),
            build_views(cfg, sorted(views)),
            transforms=build_transforms_of_views(cfg, sorted(views)),
            batch_size=cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(),
            num_instances=cfg.DATALOADER.NUM_INSTANCE,
            sampling=cfg.DATALOADER.SAMPLING,
            iters_per_epoch=cfg.SOLVER.ITERS_PER_EPOCH,
            skip_unreadable=cfg.DATALOADER.UNREADABLE == "skip",
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            device=cfg.MODEL.DEVICE,
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
        )

    def reset(self, labels: Tensor, seed: int | tuple[int, ...]) -> None:
        """Starts drawing batches for ``labels`` (N,), -1 for images that are left out."""
        sampler = IdentitySampler(
            labels,
            self.training_set.cameras,
            batch_size=self.batch_size,
            num_instances=self.num_instances,
            sampling=self.sampling,
            seed=seed,
            rank=self.rank,
            world_size=self.world_size,
        )
        self._indices.batches = BatchSampler(sampler, self.batch_size, drop_last=True)
        own_seed = np.random.SeedSequence([self.rank, *np.atleast_1d(seed).tolist()])
        self._generator.manual_seed(int(own_seed.generate_state(1)[0]))
        fresh = bool(self._crops.transforms)  # they draw from generators that workers get when they start
        if fresh:
            self.close()
        if self._loader is None:
            self._loader = _loader(self._crops, self._indices, self.num_workers, fresh=fresh)
        self._labels.copy_(labels)
        self._batches = iter(self._loader)

    def close(self) -> None:
        """Ends the decoding processes, at once: an error that one of them raised may still refer to them.

        Then garbage collection would close their queues before it ends them, and wait 5 s for each.
        """
        if hasattr(self._batches, "_shutdown_workers"):
            self._batches._shutdown_workers()
        self._batches = self._loader = None

    def __iter__(self) -> PseudoLabelLoader:
        return self

    def __next__(self) -> dict[str, Tensor]:
        if self._batches is None:
            raise RuntimeError("PseudoLabelLoader has no labels yet; call reset(labels, seed) first")
        batch = next(self._batches)
        if self._crops.transforms:
            return batch
        images = batch.pop("images").to(self.device, non_blocking=True)
        return batch | {name: view(images, self._generator) for name, view in self.views.items()}


@dataclass(frozen=True)
class _Epoch:
    length: int
    num_classes: int = 0

    def __len__(self) -> int:
        return self.length


def _inference_loader(
    cfg: CfgNode,
    paths: Sequence[str],
    columns: dict[str, Tensor],
    batches: Sequence[Sequence[int]] | None = None,
    *,
    cache: CropCache | None = None,
    keep_workers: bool = True,
    skip_unreadable: bool = False,
) -> DataLoader:
    transforms = {"images": build_test_transform(cfg, "SIZE_TEST")} if cfg.INPUT.CROP.ENABLED else {}
    crops = Crops(
        paths,
        crop_size(cfg, "SIZE_TEST"),
        columns,
        cache=cache,
        transforms=transforms,
        skip_unreadable=skip_unreadable,
    )
    if batches is None:
        batch_size = max(1, cfg.TEST.IMS_PER_BATCH // comm.get_world_size())
        batches = BatchSampler(InferenceSampler(len(crops)), batch_size, drop_last=False)
    # On a CPU, workers would only take cores from the network, to copy what is in memory.
    num_workers = 0 if cache is not None and cfg.MODEL.DEVICE == "cpu" else cfg.DATALOADER.NUM_WORKERS
    return _loader(crops, batches, num_workers, keep_workers=keep_workers)


def _test_cache(cfg: CfgNode, name: str, num_images: int) -> CropCache | None:
    """Each process stores only its part. Evaluation works without, so too little memory is no error here."""
    if cfg.DATALOADER.CACHE != "ram":
        return None
    size = crop_size(cfg, "SIZE_TEST")
    needed, free = cache_bytes(num_images, size), available_memory()
    if needed > free:
        logger.warning(
            "DATALOADER.CACHE ram: the %d test images of %s would take %.1f GB, and %.1f GB are free; each evaluation "
            "decodes them again",
            num_images,
            name,
            needed / 1e9,
            free / 1e9,
        )
        return None
    return CropCache(num_images, size)


def _loader(
    crops: Crops,
    batches: Sampler[list[int]] | Sequence[Sequence[int]],
    num_workers: int,
    *,
    keep_workers: bool = True,
    fresh: bool = False,
) -> DataLoader:
    """Batches of crops by ``batches``.

    Args:
        keep_workers: let workers live as long as the loader, not only for one pass.
        fresh: seed the workers from the generator of this process when they start.
    """
    return DataLoader(
        crops,
        sampler=batches,
        batch_size=None,  # an item of the dataset is a batch
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=keep_workers and num_workers > 0,
        # A cache is shared only by fork, which is not the default everywhere.
        multiprocessing_context="fork" if num_workers and crops.cache is not None else None,
        # Otherwise starting the workers would draw a seed from the generator of this process, and a resumed run, which
        # starts them in a later epoch, would continue from another state.
        generator=None if fresh else torch.Generator(),
    )
