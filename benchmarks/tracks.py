"""What tracks are worth to the first clustering: of drawn people, and of Market-1501 with tracks guessed from names."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.modeling import build_model
from tabulate import tabulate
from torch import Tensor

from fastreid_ice.core import (
    Constraints,
    ImageTable,
    constrain_graph,
    dbscan,
    enforce_constraints,
    jaccard_graph,
    k_nearest,
    label_quality,
    standardize_by_camera,
    track_constraints,
)
from fastreid_ice.data import build_feature_loader, build_training_set
from fastreid_ice.engine import Checkpointer, build_own_config, extract_features

from .market import BUDGET, as_options
from .measuring import check_least

RADII = (0.4, 0.45, 0.5, 0.55, 0.6)
MIN_SAMPLES = 4
GAP = 25  # frames of Market-1501, of which every 25th was labelled
TRUE_GAP = 100  # within it four of five images of a person follow each other in the same camera and sequence


class Images(NamedTuple):
    """A set to cluster: what it is, its features, what is known, and the neighbours of its Jaccard distance."""

    name: str
    features: Tensor
    known: ImageTable
    k1: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights", metavar="FILE", type=Path, help="of OSNet x0_25, bare, for Market-1501; default: drawn people only"
    )
    parser.add_argument("--seeds", type=int, default=3, help="sets of drawn people of each strength; default: 3")


def check(args: argparse.Namespace) -> None:
    check_least(args, seeds=0)
    if args.weights is not None and not args.weights.is_file():
        raise argparse.ArgumentError(None, f"--weights: no file {str(args.weights)!r}")


def run(args: argparse.Namespace) -> None:
    """Print a table for each set, as soon as it is measured."""
    torch.set_num_threads(args.threads)
    for images in (*drawn_people(args), *(market(args) if args.weights else ())):
        print(f"\n{images.name}: {describe(images.known)}")
        print(tabulate(rows(images), ["adjusted Rand index at radius", *RADII], floatfmt=".3f"), flush=True)


def drawn_people(args: argparse.Namespace) -> Iterator[Images]:
    """48 people who cross the views of four cameras twice, in four frames each, by the demo's start weights."""
    for strength in ("strong", "mild") if args.seeds else ():
        for seed in range(args.seeds):
            node = {"STRENGTH": strength, "SEED": seed, "IMAGES_PER_CAMERA": 8, "FRAMES": 4}
            settings = {f"DATASETS.SYNTHETIC.{key}": value for key, value in node.items()}
            cfg = build_own_config("ice_demo.yml", as_options(settings | {"MODEL.DEVICE": args.device}))
            yield Images(f"drawn, {strength} cameras, seed {seed}", *first_features(cfg), k1=cfg.CLUSTER.K1)


def market(args: argparse.Namespace) -> Iterator[Images]:
    settings = BUDGET | {"MODEL.DEVICE": args.device, "MODEL.BACKBONE.PRETRAIN_PATH": str(args.weights)}
    cfg = build_own_config("ice_market.yml", as_options(settings | {"DATALOADER.CACHE": "none"}))
    features, known = first_features(cfg)
    paths = build_training_set(cfg).paths
    for name, tracks in (
        (f"same box number, frames at most {GAP} apart", tracks_by_name(paths, known)),
        (f"same person, frames at most {TRUE_GAP} apart", tracks_by_truth(known)),
    ):
        tracked = replace(known, tracks=tracks)
        yield Images(f"Market-1501, {name}", features, tracked, k1=30)
        standardized = standardize_by_camera(features, known.cameras)
        yield Images(f"Market-1501, {name}, standardised within cameras", standardized, tracked, k1=30)


def first_features(cfg: CfgNode) -> tuple[Tensor, ImageTable]:
    model = build_model(cfg)
    if cfg.MODEL.WEIGHTS:
        Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    images = build_training_set(cfg)
    return extract_features(model, build_feature_loader(cfg, images), cfg.CLUSTER.FEATURES)[0], images.known


def tracks_by_name(paths: list[str], known: ImageTable) -> Tensor:
    """Market-1501's names end with _<frame>_<box>.jpg: assumes that a person keeps the number of the box.

    Names tell no position, so this is all that they say about which box follows which. The identity is not read.
    """
    boxes = [int(re.search(r"_([0-9]+)\.jpg$", path)[1]) for path in paths]
    return following(torch.stack((known.cameras, torch.tensor(boxes)), 1), known.times, GAP)


def tracks_by_truth(known: ImageTable) -> Tensor:
    """What a perfect tracker would give; it would also see that two boxes in a frame show one person."""
    return following(torch.stack((known.cameras, known.identities), 1), known.times, TRUE_GAP)


def following(keys: Tensor, times: Tensor, gap: int) -> Tensor:
    """(N,) tracks: images with equal ``keys`` (N, K), each at most ``gap`` after the one before."""
    codes = keys.unique(dim=0, return_inverse=True)[1]
    order = np.lexsort((times.numpy(), codes.numpy()))
    follows = (codes[order].diff() == 0) & (times[order].diff() <= gap)
    tracks = torch.empty_like(codes)
    tracks[order] = torch.cat((torch.zeros(1, dtype=torch.bool), ~follows)).cumsum(0)
    return tracks


def describe(known: ImageTable) -> str:
    """How many tracks have several images, and how right they and the forbidden pairs are."""
    constraints, truth = track_constraints(known), known.identities.numpy()
    sizes = np.bincount(constraints.groups)
    people = np.bincount(np.unique(np.stack((constraints.groups, truth), 1), axis=0)[:, 0])
    of_group = np.empty(len(sizes), np.int64)
    of_group[constraints.groups] = truth
    several = sizes > 1
    one, other = of_group[constraints.apart].T
    return (
        f"{several.sum()} tracks of several of {len(known)} images, {(people[several] == 1).mean():.1%} of one person; "
        f"{len(one)} pairs of tracks at once, {(one == other).mean() if len(one) else 0:.1%} of one person"
    )


def rows(images: Images) -> Iterator[tuple]:
    """The adjusted Rand index over the radii, without and with each kind of constraint."""
    ranks = k_nearest(images.features, images.k1)[1]
    graph = jaccard_graph(images.features, ranks, k1=images.k1, k2=6, max_distance=max(RADII))
    every = track_constraints(images.known)
    kinds = {
        "without tracks": Constraints(np.arange(len(every.groups)), every.apart[:0]),
        "a track is one person": Constraints(every.groups, every.apart[:0]),
        "and two at once are two": every,
    }
    for name, constraints in kinds.items():
        allowed = constrain_graph(graph, constraints)
        quality = []
        for radius in RADII:
            labels = dbscan(allowed, eps=radius, min_samples=MIN_SAMPLES)
            kept = enforce_constraints(labels, allowed, constraints, radius=radius, min_size=MIN_SAMPLES)
            quality.append(label_quality(torch.from_numpy(kept.labels), images.known.identities).adjusted_rand_index)
        yield name, *quality
