"""From a config to batches: order, labels, cameras, workers and caches."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from fastreid.config import CfgNode
from fastreid.data.data_utils import read_image
from torch import Tensor

from fastreid_ice import InputError
from fastreid_ice.data import (
    PseudoLabelLoader,
    build_dataset,
    build_feature_loader,
    build_test_loader,
    build_training_set,
    crops,
    loaders,
)


def test_feature_loader_keeps_the_order(cfg: CfgNode) -> None:
    images = build_training_set(cfg)
    cfg.TEST.IMS_PER_BATCH = 7
    indices = torch.cat([batch["indices"] for batch in build_feature_loader(cfg, images)])
    assert indices.tolist() == list(range(len(images)))


def test_test_loader_gives_queries_first(cfg: CfgNode) -> None:
    loader, num_query = build_test_loader(cfg, "SyntheticPeople")
    data = build_dataset(cfg, "SyntheticPeople")
    batches = list(loader)
    assert num_query == len(data.query) == 9
    targets = torch.cat([batch["targets"] for batch in batches]).tolist()
    assert targets == [pid for _, pid, _ in data.query + data.gallery]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("device", "num_workers"), [("cpu", 0), ("cpu", 2), ("cuda", 2)])
def test_test_images_are_decoded_for_one_pass_only(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch, device: str, num_workers: int
) -> None:
    """Without workers on a CPU, where they would compete with the network for its cores."""
    cfg.MODEL.DEVICE, cfg.DATALOADER.NUM_WORKERS = device, num_workers
    expected = list(build_test_loader(cfg, "SyntheticPeople")[0])
    cfg.DATALOADER.CACHE = "ram"
    loader, _ = build_test_loader(cfg, "SyntheticPeople")
    assert loader.num_workers == (num_workers if device == "cuda" else 0)
    first = list(loader)
    monkeypatch.setattr(crops, "read_image", lambda path: pytest.fail(f"{path} is read again"))
    for found in (first, list(loader)):
        for ours, theirs in zip(found, expected, strict=True):
            assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert not multiprocessing.active_children(), "workers end with a pass"


def test_test_images_that_do_not_fit_into_memory_are_decoded_again(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cfg.DATALOADER.CACHE = "ram"
    monkeypatch.setattr(loaders, "available_memory", lambda: 1000)
    loader, _ = build_test_loader(cfg, "SyntheticPeople")
    assert loader.dataset.cache is None
    assert "test images of SyntheticPeople would take 0.0 GB, and 0.0 GB are free" in caplog.text


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_hold_groups_of_pseudo_identities(cfg: CfgNode, num_workers: int) -> None:
    cfg.DATALOADER.NUM_WORKERS = num_workers
    images = build_training_set(cfg)
    loader = PseudoLabelLoader.from_config(cfg, images, frozenset({"online", "momentum_weak"}))
    assert len(loader.dataset) // cfg.SOLVER.IMS_PER_BATCH == cfg.SOLVER.ITERS_PER_EPOCH
    labels = images.identities.clone()
    labels[labels == 0] = -1
    labels = labels.where(labels < 0, labels - 1)
    loader.reset(labels, seed=1)
    for batch in itertools.islice(loader, 5):
        assert batch["online"].shape == batch["momentum_weak"].shape == (8, 3, 32, 16)
        assert "momentum" not in batch
        assert torch.equal(batch["targets"], labels[batch["indices"]]) and (batch["targets"] >= 0).all()
        assert torch.equal(batch["camids"], images.cameras[batch["indices"]])
        assert all(len(group.unique()) == 1 for group in batch["targets"].split(4))
    loader.close()


def test_reset_changes_labels_and_seed_repeats(cfg: CfgNode) -> None:
    images = build_training_set(cfg)
    loader = PseudoLabelLoader.from_config(cfg, images, frozenset({"online"}))
    with pytest.raises(RuntimeError, match="no labels yet"):
        next(loader)
    drawn = []
    for seed in (5, 5, 6):
        loader.reset(images.identities, seed=seed)
        drawn.append([next(loader)["indices"].tolist() for _ in range(3)])
    assert drawn[0] == drawn[1] != drawn[2]


def batches(loader: PseudoLabelLoader, labels: Tensor, seeds: tuple[int, ...]) -> list[dict[str, Tensor]]:
    """Three batches from each of several epochs."""
    drawn = []
    for seed in seeds:
        loader.reset(labels, seed=seed)
        drawn += itertools.islice(loader, 3)
    loader.close()
    return drawn


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_batches_do_not_depend_on_workers_cache_or_earlier_epochs(cfg: CfgNode) -> None:
    """Including an unreadable image, which is replaced by another."""
    cfg.DATALOADER.CACHE, cfg.DATALOADER.UNREADABLE = "ram", "skip"
    state = torch.get_rng_state()
    images = build_training_set(cfg)
    images.paths[5] = "gone.jpg"
    views = frozenset({"online", "momentum", "momentum_weak"})
    expected = batches(
        PseudoLabelLoader.from_config(cfg, replace(images, cache=None), views), images.identities, (4, 5)
    )
    for num_workers, cache, seeds in ((4, None, (4, 5)), (0, images.cache, (4, 5)), (2, images.cache, (5,))):
        cfg.DATALOADER.NUM_WORKERS = num_workers
        loader = PseudoLabelLoader.from_config(cfg, replace(images, cache=cache), views)
        found = batches(loader, images.identities, seeds)
        for ours, theirs in zip(found, expected[-len(found) :], strict=True):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert not torch.equal(expected[0]["online"], expected[3]["online"])
    assert all(batch["readable"].all() and 5 not in batch["indices"] for batch in expected)
    assert torch.equal(torch.get_rng_state(), state), "the generator of the process is not used"


def test_an_image_is_decoded_once_for_all_views(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    monkeypatch.setattr(crops, "read_image", lambda path: reads.append(path) or read_image(path))
    images = build_training_set(cfg)
    loader = PseudoLabelLoader.from_config(cfg, images, frozenset({"online", "momentum", "momentum_weak"}))
    loader.reset(images.identities, seed=0)
    batch = next(loader)
    assert {"online", "momentum", "momentum_weak"} < batch.keys()
    assert sorted(reads) == sorted(images.paths[i] for i in batch["indices"].unique().tolist())


def test_processes_draw_views_apart(cfg: CfgNode) -> None:
    """Each process has different images of the batch, and augments them with different random numbers."""
    images = build_training_set(cfg)
    drawn = []

    def view(crops: Tensor, generator: torch.Generator) -> Tensor:
        drawn.append(torch.rand(2, generator=generator).tolist())
        return crops

    for rank, seed in ((0, 0), (1, 0), (0, (0, 1))):
        loader = PseudoLabelLoader(
            images,
            (32, 16),
            {"online": view},
            batch_size=4,
            num_instances=2,
            sampling="spread",
            iters_per_epoch=1,
            rank=rank,
            world_size=2,
        )
        loader.reset(images.identities, seed)
        next(loader)
    assert len({tuple(numbers) for numbers in drawn}) == 3


def test_workers_outlive_the_epochs(cfg: CfgNode) -> None:
    cfg.DATALOADER.NUM_WORKERS = 2
    images = build_training_set(cfg)
    loader = PseudoLabelLoader.from_config(cfg, images, frozenset({"online"}))
    others = {process.pid for process in multiprocessing.active_children()}

    def workers() -> set[int]:
        return {process.pid for process in multiprocessing.active_children()} - others

    loader.reset(images.identities, seed=0)
    next(loader)
    before = workers()
    assert len(before) == 2
    flipped = images.identities.max() - images.identities
    loader.reset(flipped, seed=1)
    for batch in itertools.islice(loader, 8):  # more than the workers had fetched ahead
        assert torch.equal(batch["targets"], flipped[batch["indices"]])
    assert workers() == before
    loader.close()
    assert not workers()


def test_extraction_and_training_share_the_cache(cfg: CfgNode) -> None:
    cfg.DATALOADER.CACHE = "ram"
    images = build_training_set(cfg)
    list(build_feature_loader(cfg, images))
    assert images.cache.filled.all()
    cfg.INPUT.SIZE_TEST = [16, 8]
    shapes = {batch["images"].shape[2:] for batch in build_feature_loader(cfg, images)}
    assert shapes == {(16, 8)}, "another size is read from the files"


def error_of(loader: Iterable) -> str:
    """The error's message; the error itself would keep the loader's workers alive (``PseudoLabelLoader.close``)."""
    iterator = iter(loader)
    try:
        next(iterator)
    except InputError as error:
        return str(error)
    finally:
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
    return ""


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_of_a_worker_is_one_sentence(cfg: CfgNode, num_workers: int) -> None:
    cfg.DATALOADER.NUM_WORKERS = num_workers
    images = build_training_set(cfg)
    images.paths[3] = "gone.jpg"
    labels = torch.full_like(images.identities, -1)
    labels[:4] = 0
    training = PseudoLabelLoader.from_config(cfg, images, frozenset({"online"}))
    training.reset(labels, seed=0)
    for error in (error_of(build_feature_loader(cfg, images)), error_of(training)):
        assert error.startswith("cannot read the image gone.jpg: ") and "\n" not in error
    training.close()
