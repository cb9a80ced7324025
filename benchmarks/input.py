"""The speed of each stage from the image file to the network, compared with the network's own speed."""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date

import torch
from fastreid.config import CfgNode, get_cfg
from fastreid.data.data_utils import read_image
from fastreid.data.transforms import build_transforms
from fastreid.engine.defaults import DefaultTrainer
from fastreid.modeling import build_model
from PIL import Image, ImageFilter
from tabulate import tabulate
from torch import nn
from torchvision.transforms import Compose, RandomApply

from fastreid_ice import add_ice_config
from fastreid_ice.compat.data import fast_batch_collator
from fastreid_ice.compat.training import mixed_precision
from fastreid_ice.config import merge_config_file, merge_options, shipped_file
from fastreid_ice.core import Clusters, ImageTable
from fastreid_ice.data import (
    CropCache,
    Crops,
    PseudoLabelLoader,
    TrainingSet,
    build_augmentation,
    build_feature_loader,
    build_training_set,
)
from fastreid_ice.data.views import crop_size
from fastreid_ice.engine import UnsupervisedTrainer, extract_features
from fastreid_ice.engine.features import encode_images
from fastreid_ice.engine.trainer import Tests
from fastreid_ice.losses import required_views

from .measuring import Clock, check_least, machine
from .recluster import K1

LOADER = "training loader, cache {cache}, {workers} workers"
STEP = "network, training step"
EXTRACTION = "features, cache {cache}, {workers} workers"
FORWARD = "network, features"
EVALUATION = "evaluation, cache {cache}, {workers} workers"

# Processes some images, and returns how many.
Work = Callable[[], int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        default="configs/ice_market.yml",
        help="network, size, batch and transforms; default: configs/ice_market.yml",
    )
    parser.add_argument("--images", type=int, default=768, help="crops of the synthetic data; default: 768")
    parser.add_argument(
        "--steps", type=int, default=20, help="batches drawn from a loader for one measurement; default: 20"
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=int, default=cores, help="of the loaders; default: one for each core")
    parser.add_argument("--repeats", type=int, default=5, help="how often each is measured; default: 5")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes to the config")


def check(args: argparse.Namespace) -> None:
    check_least(args, images=K1, steps=1, workers=1, repeats=1)


def run(args: argparse.Namespace) -> None:
    """Measure one stage after the other, and print the table."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cfg = build_config(args)
    images = first_images(build_training_set(cfg), args.images)
    size = crop_size(cfg, "SIZE_TRAIN")
    print(f"\n{args.config_file}: {len(images)} crops of {size[0]} x {size[1]}, median of {args.repeats}")
    print(f"{date.today()}, {machine(args.threads, args.device)}\n", flush=True)

    rates: dict[str, list[float]] = {}
    for name, work in itertools.chain(stages(cfg, images), loaders(cfg, images, args), networks(cfg, images, args)):
        rates[name] = measure(work, args.repeats, args.device)
    print(table(rates))
    for line in conclusions({name: statistics.median(values) for name, values in rates.items()}, args.workers):
        print(line)


def build_config(args: argparse.Namespace) -> CfgNode:
    """The config file, with the synthetic data and random weights: neither changes the cost of an image."""
    cfg = get_cfg()
    add_ice_config(cfg)
    merge_config_file(cfg, shipped_file(args.config_file))
    cfg.merge_from_list(["DATASETS.NAMES", ("SyntheticPeople",), "DATASETS.TESTS", ("SyntheticPeople",)])
    cfg.merge_from_list(["MODEL.DEVICE", args.device, "MODEL.WEIGHTS", ""])
    cfg.merge_from_list(["MODEL.BACKBONE.PRETRAIN", False, "DATALOADER.NUM_WORKERS", 0])
    merge_options(cfg, args.opts)
    if "INPUT.SIZE_TEST" not in args.opts:
        cfg.INPUT.SIZE_TEST = cfg.INPUT.SIZE_TRAIN  # otherwise extraction could not use the cache
    return cfg


def first_images(images: TrainingSet, number: int) -> TrainingSet:
    identities = images.identities[:number].unique(return_inverse=True)[1]
    return TrainingSet(images.paths[:number], ImageTable(images.cameras[:number], identities=identities))


def stages(cfg: CfgNode, images: TrainingSet) -> Iterator[tuple[str, Work]]:
    """The stages of loading, in this process; transforms and augmentation make one strong view."""
    paths, size = images.paths, crop_size(cfg, "SIZE_TRAIN")
    pictures = [read_image(path) for path in paths]
    yield "decode", lambda: len([read_image(path) for path in paths])
    height, width = size
    yield "resize", lambda: len([picture.resize((width, height), Image.Resampling.BICUBIC) for picture in pictures])

    batches = torch.arange(len(paths)).split(cfg.SOLVER.IMS_PER_BATCH)

    def load(crops: Crops) -> Work:
        return lambda: sum(len(crops[batch]["images"]) for batch in batches)

    yield "decode and resize into batches", load(Crops(paths, size, {}))
    yield "batches from the cache", load(Crops(paths, size, {}, cache=CropCache(len(paths), size)))

    crops = [Crops(paths, size, {})[batch]["images"].to(cfg.MODEL.DEVICE) for batch in batches]
    augment, generator = build_augmentation(cfg), torch.Generator()
    yield "augmentation of batches", lambda: sum(len(augment(batch, generator)) for batch in crops)
    transform, resized = pillow_transform(cfg), [picture.resize((width, height)) for picture in pictures]
    yield "fast-reid's transforms", lambda: len([transform(picture) for picture in resized])
    items = [{"images": image.float()} for image in crops[0].cpu()]
    yield "collation of single images", lambda: len(fast_batch_collator(items)["images"])


def pillow_transform(cfg: CfgNode) -> Callable[[Image.Image], torch.Tensor]:
    """fast-reid's training transform without resizing, and INPUT.BLUR by Pillow, as in the published code."""
    steps = [step for step in build_transforms(cfg, is_train=True).transforms if type(step).__name__ != "Resize"]
    if cfg.INPUT.BLUR.ENABLED:
        to_tensor = next(i for i, step in enumerate(steps) if type(step).__name__ == "ToTensor")
        steps.insert(to_tensor, RandomApply([lambda image: blur(image, *cfg.INPUT.BLUR.SIGMA)], cfg.INPUT.BLUR.PROB))
    return Compose(steps)


def blur(image: Image.Image, low: float, high: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(low, high)))


def loaders(cfg: CfgNode, images: TrainingSet, args: argparse.Namespace) -> Iterator[tuple[str, Work]]:
    """The training loader with all views of the losses, at the start of an epoch; its workers are already running."""
    for workers, cache in itertools.product(dict.fromkeys((0, args.workers)), ("none", "ram")):
        name = LOADER.format(cache=cache, workers=workers)
        loader = build_loader(cfg, cached(images, cfg, cache), workers)
        yield name, lambda loader=loader: draw(loader, images, args.steps)
        loader.close()


def cached(images: TrainingSet, cfg: CfgNode, kind: str) -> TrainingSet:
    cache = CropCache(len(images), crop_size(cfg, "SIZE_TRAIN")) if kind == "ram" else None
    return replace(images, cache=cache)


def build_loader(cfg: CfgNode, images: TrainingSet, workers: int) -> PseudoLabelLoader:
    cfg = with_workers(cfg, workers)
    return PseudoLabelLoader.from_config(cfg, images, required_views(cfg))


def with_workers(cfg: CfgNode, workers: int) -> CfgNode:
    cfg = cfg.clone()
    cfg.DATALOADER.NUM_WORKERS = workers
    return cfg


def draw(loader: PseudoLabelLoader, images: TrainingSet, steps: int) -> int:
    loader.reset(images.identities, seed=0)
    return sum(len(batch["targets"]) for batch in itertools.islice(loader, steps))


def networks(cfg: CfgNode, images: TrainingSet, args: argparse.Namespace) -> Iterator[tuple[str, Work]]:
    """The network on prepared batches; features of all images, and an evaluation, from files or the cache."""
    model = build_model(cfg)
    yield STEP, training_step(cfg, model, images)

    encoder, amp = cfg.CLUSTER.FEATURES, cfg.SOLVER.AMP.ENABLED
    crops = Crops(images.paths, crop_size(cfg, "SIZE_TEST"), {})
    batches = torch.arange(len(images)).split(cfg.TEST.IMS_PER_BATCH)
    ready = [{"images": crops[batch]["images"].to(model.device)} for batch in batches]
    yield FORWARD, lambda: len(encode_images(model, ready, [encoder], title="Encoding", amp=amp)[0][encoder])
    for cache in ("none", "ram"):
        loader = build_feature_loader(with_workers(cfg, args.workers), cached(images, cfg, cache))
        name = EXTRACTION.format(cache=cache, workers=args.workers)
        yield name, lambda loader=loader: len(extract_features(model, loader, encoder, amp=amp)[0])
    for cache in ("none", "ram"):
        name = EVALUATION.format(cache=cache, workers=args.workers)
        yield name, evaluation(with_workers(cfg, args.workers), model, cache)


def evaluation(cfg: CfgNode, model: nn.Module, cache: str) -> Work:
    """Features of query and gallery, and their ranking, as after an epoch of training."""
    cfg.DATALOADER.CACHE = cache
    tests: Tests = {}

    def evaluate() -> int:
        UnsupervisedTrainer.test(cfg, model, tests)
        return sum(len(loader.dataset) for loader, _ in tests.values())

    return evaluate


def precision(cfg: CfgNode, device: torch.device) -> torch.autocast:
    """The precision of training and extraction, as SOLVER.AMP.ENABLED sets it."""
    lower = mixed_precision(device) if cfg.SOLVER.AMP.ENABLED else None
    return torch.autocast(device.type, lower, enabled=lower is not None)


def training_step(cfg: CfgNode, model: nn.Module, images: TrainingSet) -> Work:
    """Forward passes of all views, losses, backward pass, optimiser and momentum update of one batch."""
    loader = build_loader(cfg, images, 0)
    loader.reset(images.identities, seed=0)
    batch = next(loader)
    loader.close()
    optimizer, _ = DefaultTrainer.build_optimizer(cfg, model)
    with torch.no_grad():
        dim = model.eval()(batch["online"][:1]).shape[1]
    features = torch.randn(len(images), dim)
    columns = (images.identities, features, images.known, features)
    model.begin_epoch(Clusters(*(column.to(model.device) for column in columns)))

    def step() -> int:
        model.train()
        with precision(cfg, model.device):
            loss = sum(model(batch).values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_step()
        return len(batch["targets"])

    return step


def measure(work: Work, repeats: int, device: str) -> list[float]:
    """Images per second of each of ``repeats`` runs, after one that does not count."""
    work()
    rates = []
    for _ in range(repeats):
        clock = Clock(device)
        with clock.stage("work"):
            number = work()
        rates.append(number / clock.seconds["work"])
    return rates


def table(rates: dict[str, list[float]]) -> str:
    rows = [[name, statistics.median(values), min(values), max(values)] for name, values in rates.items()]
    return tabulate(rows, ["", "images/s", "slowest", "fastest"], tablefmt="pipe", floatfmt=".0f") + "\n"


def conclusions(rates: dict[str, float], workers: int) -> Iterator[str]:
    """The speed of the loader relative to the network, and the costs of extraction and evaluation relative to it."""
    for cache in ("none", "ram"):
        ahead = rates[LOADER.format(cache=cache, workers=workers)] / rates[STEP]
        extraction, evaluation = (
            rates[FORWARD] / rates[work.format(cache=cache, workers=workers)] for work in (EXTRACTION, EVALUATION)
        )
        yield (
            f"cache {cache}: the training loader brings {ahead:.1f} times what the training step uses; extraction "
            f"takes {extraction:.2f} times the network's own time, evaluation {evaluation:.2f} times"
        )
