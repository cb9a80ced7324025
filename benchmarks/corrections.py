"""What a person's answers are worth: the truth answers the first questions in order of doubt, and in random order."""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from tabulate import tabulate
from torch import Tensor

from fastreid_ice.clusterers import centroid_offsets
from fastreid_ice.commands import train
from fastreid_ice.core import (
    Constraints,
    constrain_graph,
    correction_constraints,
    dbscan,
    doubtful_pairs,
    enforce_constraints,
    jaccard_graph,
    k_nearest,
    label_quality,
    standardize_by_camera,
)
from fastreid_ice.data import build_training_set
from fastreid_ice.engine import build_own_config, build_trained_config
from fastreid_ice.files import replacing

from .market import BUDGET, METHODS, as_options, own_settings
from .measuring import check_least
from .tracks import first_features

ANSWERS = (0, 50, 100, 200)
BATCH = 25  # questions that are answered before the images are clustered again
RADII = {"drawn": 0.5, "features": 0.55}
MIN_SAMPLES = 4
MARKET = "o2cap_camera_norm_averaged"


class Images(NamedTuple):
    """A set to cluster: what it is, its features, who is shown, and the keys of its clustering."""

    name: str
    features: Tensor
    identities: Tensor
    k1: int
    radius: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--features",
        metavar="FILE",
        type=Path,
        nargs="+",
        default=[],
        help=".npz files with feats (N, D), ids (N,) and cams (N,), such as those of Market-1501",
    )
    parser.add_argument("--seeds", type=int, default=3, help="sets of drawn people of each strength; default: 3")
    parser.add_argument(
        "--train", metavar="EPOCHS", type=int, default=0, help="also train the demo so long, without and with answers"
    )
    parser.add_argument(
        "--market",
        metavar="FILE",
        type=Path,
        help=f"of OSNet x0_25, bare: --train {MARKET} of `bench market` from these weights in place of the demo",
    )
    parser.add_argument(
        "--answers",
        metavar="N",
        type=int,
        nargs="+",
        default=[200],
        help=f"before these trainings, multiples of {BATCH}; default: 200",
    )
    parser.add_argument("--output", metavar="FOLDER", type=Path, default=Path("logs/corrections"), help="of these runs")
    parser.add_argument("--repeats", type=int, default=3, help="random orders of the questions; default: 3")


def check(args: argparse.Namespace) -> None:
    check_least(args, seeds=0, repeats=1, train=0, answers=BATCH)
    if any(number % BATCH for number in args.answers):
        raise argparse.ArgumentError(None, f"--answers must be multiples of {BATCH}")
    if args.market and not args.train:
        raise argparse.ArgumentError(None, "--market needs --train")
    for name, path in [*(("--features", path) for path in args.features), ("--market", args.market)]:
        if path and not path.is_file():
            raise argparse.ArgumentError(None, f"{name}: no file {str(path)!r}")


def run(args: argparse.Namespace) -> None:
    """Print a table for each set, as soon as it is measured."""
    torch.set_num_threads(args.threads)
    for images in (*drawn_people(args), *saved(args)):
        print(f"\n{images.name}: {describe(images)}")
        table = tabulate(rows(images, args.repeats), ["adjusted Rand index after answers", *ANSWERS], floatfmt=".3f")
        print(table, flush=True)
    for name, (config, settings) in runs(args).items():
        print(f"\n{name}, after {args.train} epochs; questions about the run without answers")
        found = trained(args.output / name, config, settings, args.answers)
        print(tabulate(found, ["training", "ARI of the last clustering", "mAP", "rank-1"]), flush=True)


def runs(args: argparse.Namespace) -> dict[str, tuple[str, dict[str, object]]]:
    """What to train, by the name of its folder: a config, and its settings."""
    if not args.train:
        return {}
    common: dict[str, object] = {
        "MODEL.DEVICE": args.device,
        "TEST.BEFORE_TRAINING": False,
        "TEST.EVAL_PERIOD": args.train,
    }
    if args.market:
        settings = BUDGET | own_settings(MARKET, args.train) | {"MODEL.BACKBONE.PRETRAIN_PATH": args.market, "SEED": 0}
        return {"market": (f"{METHODS[MARKET].config}.yml", settings | common)}
    common |= {"SOLVER.MAX_EPOCH": args.train}
    return {
        strength: ("ice_demo.yml", common | {"DATASETS.SYNTHETIC.STRENGTH": strength})
        for strength in ("strong", "mild")
    }


def drawn_people(args: argparse.Namespace) -> Iterator[Images]:
    """The people of the demo, by its start weights."""
    for strength in ("strong", "mild") if args.seeds else ():
        for seed in range(args.seeds):
            node = {"STRENGTH": strength, "SEED": seed}
            settings = {f"DATASETS.SYNTHETIC.{key}": value for key, value in node.items()}
            cfg = build_own_config("ice_demo.yml", as_options(settings | {"MODEL.DEVICE": args.device}))
            features, known = first_features(cfg)
            name = f"drawn, {strength} cameras, seed {seed}"
            yield Images(name, features, known.identities, cfg.CLUSTER.K1, RADII["drawn"])


def saved(args: argparse.Namespace) -> Iterator[Images]:
    for path in args.features:
        with np.load(path) as arrays:
            features, identities, cameras = (torch.from_numpy(arrays[name]) for name in ("feats", "ids", "cams"))
        features = F.normalize(features.float())
        yield Images(path.stem, features, identities, 30, RADII["features"])
        standardized = standardize_by_camera(features, cameras)
        yield Images(f"{path.stem}, standardised within cameras", standardized, identities, 30, RADII["features"])


def trained(output: Path, config: str, settings: dict[str, object], answers: list[int]) -> Iterator[tuple]:
    """Trains without answers, asks about the clusters of that run, and trains again with the first answers to both
    orders of the questions. Complete runs are kept."""
    first = train_once(output / "without", config, settings)
    yield "without answers", *outcome(first)
    for order in ("doubt", "random"):
        said = ask(first, max(answers), in_order=order == "doubt")
        for number in answers:
            file = output / f"{order}_{number}.csv"
            write_answers(file, said[:number])
            folder = train_once(file.with_suffix(""), config, settings | {"CORRECTIONS": file})
            yield f"{number} answers, {order}", *outcome(folder)


def train_once(folder: Path, config: str, settings: dict[str, object]) -> Path:
    if not (folder / "model_final.pth").is_file():
        train.main(["--config-file", config, *as_options(settings | {"OUTPUT_DIR": folder})])
    return folder


def ask(run: Path, number: int, *, in_order: bool) -> list[tuple[str, str, str]]:
    """So many answers (image, relation, other) to questions about the features of a run."""
    cfg, _ = build_trained_config("", run)
    features, known = first_features(cfg)
    if cfg.CLUSTER.CAMERA_NORM:
        features = standardize_by_camera(features, known.cameras)
    images = Images("", features, known.identities, cfg.CLUSTER.K1, cfg.CLUSTER.EPS)
    _, asked = answer(images, graph_of(images), None if in_order else np.random.default_rng(0), number)
    paths = [os.path.abspath(path) for path in build_training_set(cfg).paths]
    same = known.identities[asked[:, 0]] == known.identities[asked[:, 1]]
    return [
        (paths[one], "same" if alike else "different", paths[other])
        for (one, other), alike in zip(asked.tolist(), same.tolist(), strict=True)
    ]


def write_answers(file: Path, said: list[tuple[str, str, str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(str(file), "w", encoding="utf-8", newline="") as lines:
        csv.writer(lines).writerows([("image", "relation", "other"), *said])


def outcome(folder: Path) -> tuple[float, float, float]:
    """ARI of the last clustering, mAP and rank-1 in %, of the last epoch."""
    last: dict[str, float] = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        last |= json.loads(line)
    return last["cluster/ari"], last["mAP"], last["Rank-1"]


def rows(images: Images, repeats: int) -> Iterator[tuple]:
    """The adjusted Rand index over the number of answers, for each order of the questions."""
    graph = graph_of(images)
    yield "most doubtful first", *answer(images, graph, None)[0]
    several = [answer(images, graph, np.random.default_rng(seed))[0] for seed in range(repeats)]
    yield "in random order", *np.mean(several, 0)
    yield "links at random, a stray image moves alone", *linked(images, graph)
    yield "links at random, each joins two clusters", *linked(images, graph, offsets=np.zeros(len(images.features)))


def describe(images: Images) -> str:
    """How many questions there are at first, and how many of them find an error."""
    labels = cluster(images, graph_of(images), corrections_from_truth(torch.empty(0, 2).long(), images.identities))
    pairs, _ = doubtful_pairs(images.features, labels)
    one, other = pairs.T
    wrong = (labels[one] == labels[other]) != (images.identities[one] == images.identities[other])
    return (
        f"{len(labels)} images of {len(images.identities.unique())} people; of {len(pairs)} questions "
        f"{wrong.float().mean():.0%} find an error, of the first 100 {wrong[:100].float().mean():.0%}"
    )


def linked(images: Images, graph: sparse.csr_array, offsets: np.ndarray | None = None) -> list[float]:
    """The adjusted Rand index after links between images of one person in two clusters, which nobody has chosen well.

    ``offsets`` that are equal make each image central, so that it speaks for its cluster.
    """
    truth = images.identities.numpy()
    random = np.random.default_rng(0)
    order = truth.argsort(kind="stable")
    _, owner, sizes = np.unique(truth, return_inverse=True, return_counts=True)
    one = random.integers(0, len(truth), 100 * max(ANSWERS))
    place = (sizes.cumsum() - sizes)[owner[one]] + (random.random(len(one)) * sizes[owner[one]]).astype(np.int64)
    pairs = torch.from_numpy(np.stack((one, order[place]), 1))
    labels = cluster(images, graph, corrections_from_truth(pairs[:0], images.identities))[pairs]
    pairs = pairs[(labels >= 0).all(1) & (labels[:, 0] != labels[:, 1])]
    quality = []
    for number in ANSWERS:
        said = corrections_from_truth(pairs[:number], images.identities)
        found = cluster(images, graph, said, offsets)
        quality.append(label_quality(found, images.identities).adjusted_rand_index)
    return quality


def graph_of(images: Images) -> sparse.csr_array:
    ranks = k_nearest(images.features, images.k1)[1]
    return jaccard_graph(images.features, ranks, k1=images.k1, k2=6, max_distance=images.radius)


def answer(
    images: Images, graph: sparse.csr_array, random: np.random.Generator | None, number: int = max(ANSWERS)
) -> tuple[list[float], Tensor]:
    """The adjusted Rand index after each of ``ANSWERS`` up to ``number``, and the pairs (A, 2) that were asked about.

    With ``random``, questions are drawn from all, as many about one cluster and about two as in order of doubt.
    """
    asked = torch.empty(0, 2, dtype=torch.int64)
    quality = []
    while True:
        constraints = corrections_from_truth(asked, images.identities)
        labels = cluster(images, graph, constraints)
        if len(asked) in ANSWERS:
            quality.append(label_quality(labels, images.identities).adjusted_rand_index)
        if len(asked) >= number:
            return quality, asked
        pairs, _ = doubtful_pairs(images.features, labels, constraints=constraints)
        chosen = pairs[:BATCH]
        if random is not None:
            together = labels[pairs[:, 0]] == labels[pairs[:, 1]]
            kinds = [(together[:BATCH] == kind).sum().item() for kind in (True, False)]
            places = [np.flatnonzero(together.numpy() == kind) for kind in (True, False)]
            drawn = [random.choice(place, count, replace=False) for place, count in zip(places, kinds, strict=True)]
            chosen = pairs[np.concatenate(drawn)]
        asked = torch.cat((asked, chosen))
        if len(chosen) < BATCH:  # nothing is left to ask
            asked = torch.cat((asked, asked[:1].expand(BATCH - len(chosen), 2)))


def corrections_from_truth(asked: Tensor, identities: Tensor) -> Constraints:
    """What a person who makes no mistake answers."""
    same = identities[asked[:, 0]] == identities[asked[:, 1]]
    unknown = np.full(len(identities), -1)
    return correction_constraints(
        len(identities), same=asked[same].numpy(), different=asked[~same].numpy(), names=unknown, nobody=unknown >= 0
    )


def cluster(
    images: Images, graph: sparse.csr_array, constraints: Constraints, offsets: np.ndarray | None = None
) -> Tensor:
    """As ``JaccardDBSCAN`` does, from the graph without constraints, unless ``offsets`` are given."""
    allowed = constrain_graph(graph, constraints)
    labels = dbscan(allowed, eps=images.radius, min_samples=MIN_SAMPLES)
    if offsets is None:
        offsets = centroid_offsets(images.features, torch.from_numpy(labels))
    options = {"offsets": offsets, "radius": images.radius, "min_size": MIN_SAMPLES}
    return torch.from_numpy(enforce_constraints(labels, allowed, constraints, **options).labels)
