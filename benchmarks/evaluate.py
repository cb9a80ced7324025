"""One evaluation compared with fast-reid's own: ranking every query, and with re-ranking."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from fastreid.evaluation.rank import eval_market1501
from fastreid.utils.compute_dist import build_dist
from tabulate import tabulate
from torch import Tensor

from fastreid_ice.core import camera_reranked_blocks, k_nearest
from fastreid_ice.core.jaccard import jaccard_weights
from fastreid_ice.core.retrieval import distance_blocks, rank_blocks, reranked_blocks

from .measuring import Clock, Measurement, Worker, check_least, draw_people, machine

try:
    from fastreid.evaluation.rank_cylib.rank_cy import evaluate_cy
except ImportError:
    evaluate_cy = None

K1, K2, LAMBDA = 20, 6, 0.3  # fast-reid's defaults
MAX_RANK = 50
SAME = 1e-5  # for metrics in [0, 1]; the order of images whose distances round to the same number may differ
NOISE = 3.0  # makes people so similar that many ranks are wrong
DISTANCES = ("jaccard", "ca_jaccard")
OURS, PYTHON, CYTHON = "ours", "fast-reid, Python", "fast-reid, Cython"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--queries", type=int, default=1000, help="default: 1000; MSMT17 has 11659")
    parser.add_argument("--gallery", type=int, default=10_000, help="images; default: 10000; MSMT17 has 82161")
    parser.add_argument("--dim", type=int, default=2048, help="dimensions of a feature; default: 2048, as of ResNet-50")
    parser.add_argument("--repeats", type=int, default=5, help="how often each is measured; default: 5")
    parser.add_argument(
        "--rerank",
        nargs="?",
        choices=DISTANCES,
        const=DISTANCES[0],
        help=f"with re-ranking by {DISTANCES[0]}, for which fast-reid needs N x N memory, or by {DISTANCES[1]}, which "
        "fast-reid has not",
    )


def check(args: argparse.Namespace) -> None:
    check_least(args, queries=1, gallery=2 * MAX_RANK, dim=1, repeats=1)


def ours(
    features: Tensor,
    clock: Clock,
    device: str,
    *,
    queries: int,
    who: np.ndarray,
    cameras: np.ndarray,
    rerank: str | None,
) -> list[float]:
    queries = first_of(queries, features, who)
    parts = features[:queries], features[queries:]
    blocks = distance_blocks(*parts, device=device)
    if rerank == "ca_jaccard":
        blocks = camera_reranked_blocks(*parts, *halves(cameras, features, queries), device=device)
    elif rerank:
        _, ranks = k_nearest(features, K1, device=device)
        weights = jaccard_weights(features, ranks, k1=K1, k2=K2)
        blocks = reranked_blocks(blocks, weights, distance_weight=LAMBDA)
    found = rank_blocks(blocks, *halves(who, features, queries), *halves(cameras, features, queries))
    return figures(found.cmc, found.average_precision, found.inverse_negative_penalty)


def theirs(
    features: Tensor,
    clock: Clock,
    device: str,
    *,
    rank: Callable,
    queries: int,
    who: np.ndarray,
    cameras: np.ndarray,
    rerank: str | None,
) -> list[float]:
    """As in ReidEvaluator: on the CPU, except the search for neighbours, which uses a GPU if there is one."""
    queries = first_of(queries, features, who)
    distances = build_dist(features[:queries], features[queries:], "cosine")
    if rerank:
        units = F.normalize(features)
        jaccard = build_dist(units[:queries], units[queries:], "jaccard", k1=K1, k2=K2)
        distances = jaccard * (1 - LAMBDA) + distances * LAMBDA
    identities = (*halves(who, features, queries), *halves(cameras, features, queries))
    return figures(*rank(distances, *identities, MAX_RANK))


def first_of(queries: int, features: Tensor, who: np.ndarray) -> int:
    """How many of the features are queries; half of those for warm-up, as a smaller share may have no true match."""
    return queries if len(features) == len(who) else len(features) // 2


def halves(values: np.ndarray, features: Tensor, queries: int) -> tuple[np.ndarray, np.ndarray]:
    return values[:queries], values[queries : len(features)]


def figures(cmc: np.ndarray, precisions: np.ndarray, penalties: np.ndarray) -> list[float]:
    """Rank-1, -5 and -10, mAP and mINP."""
    return [float(cmc[rank - 1]) for rank in (1, 5, 10)] + [float(np.mean(precisions)), float(np.mean(penalties))]


def run(args: argparse.Namespace) -> None:
    """Measure the evaluations in turn, each in its own process, and print the table."""
    total = args.queries + args.gallery
    print(f"{args.queries} queries x {args.gallery} gallery images x {args.dim}, median of {args.repeats}")
    print(f"{date.today()}, {machine(args.threads, args.device)}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        file = Path(folder, "features.npy")
        who = draw_people(file, total, args.dim, per_person=30, noise=NOISE)
        cameras = np.random.default_rng(1).integers(6, size=total)
        known = {"queries": args.queries, "who": who, "cameras": cameras, "rerank": args.rerank}
        works = {OURS: partial(ours, **known)}
        if args.rerank != "ca_jaccard":
            works[PYTHON] = partial(theirs, rank=eval_market1501, **known)
        if args.rerank != "ca_jaccard" and evaluate_cy is not None:
            works[CYTHON] = partial(theirs, rank=evaluate_cy, **known)
        start = partial(Worker, features=file, threads=args.threads, device=args.device)
        workers = {name: stack.enter_context(start(work)) for name, work in works.items()}
        runs: dict[str, list[Measurement]] = {name: [] for name in works}
        for _ in range(args.repeats):
            for name, worker in workers.items():
                runs[name].append(worker.run())

    print(table(runs) + "\n")
    found = runs[OURS][-1].result
    print(f"rank-1 {found[0]:.2%}, mAP {found[3]:.2%}, mINP {found[4]:.2%}")
    for name in list(runs)[1:]:
        difference = max(abs(a - b) for a, b in zip(found, runs[name][-1].result, strict=True))
        equal = "yes" if difference <= SAME else "NO"
        print(f"metrics equal to those of {name}: {equal} (largest difference {difference:.0e})")
    if evaluate_cy is None:
        print("fast-reid's compiled ranking is not measured: it is not built here (it needs Cython and a compiler)")


def table(runs: dict[str, list[Measurement]]) -> str:
    """A row per evaluation and stage, in Markdown; ratios are between the medians."""
    rows = []
    for name, measurements in runs.items():
        for stage in measurements[-1].seconds:
            seconds = statistics.median(run.seconds[stage] for run in measurements)
            own = statistics.median(run.seconds[stage] for run in runs[OURS])
            row = [name if stage == "total" else f"- {stage}", seconds, seconds / own]
            rows.append([*row, measurements[-1].beside, measurements[-1].gpu_peak] if stage == "total" else row)
    headers = ["", "seconds", "times ours", "MiB beside the features", "MiB on the GPU"]
    return tabulate(rows, headers, tablefmt="pipe", floatfmt=["", ".3f", ".2f", ".0f", ".0f"])
