"""One reclustering, stage by stage, compared with fast searches and with an exact oracle."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from contextlib import ExitStack
from datetime import date
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from fastreid_ice.core import camera_jaccard_graph, dbscan, jaccard_graph, k_nearest
from fastreid_ice.progress import progress

from .measuring import Clock, Measurement, Work, Worker, check_least, draw_people, machine

EPS, K1, K2 = 0.55, 30, 6
FLOAT64_LIMIT = 40_000  # images up to which the lists are searched in float64 as well
TESTS = Path(__file__).resolve().parent.parent / "tests"  # where the oracle is, in a checkout
sys.path.append(str(TESTS))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=12936, help="default: 12936, as in Market-1501's training set")
    parser.add_argument("--dim", type=int, default=2048, help="dimensions of a feature; default: 2048, as of ResNet-50")
    parser.add_argument("--repeats", type=int, default=5, help="how often each is measured; default: 5")
    parser.add_argument(
        "--dense",
        action="store_true",
        help="with the oracle of the tests (needs a checkout), which holds several N x N matrices",
    )


def check(args: argparse.Namespace) -> None:
    check_least(args, images=K1, dim=1, repeats=1)
    if args.dense and not TESTS.is_dir():
        raise argparse.ArgumentError(
            None, f"--dense: the oracle belongs to the tests, and {TESTS} does not exist; use a checkout"
        )


def recluster(features: Tensor, clock: Clock, device: str, method: str = "exact") -> np.ndarray:
    """From features to pseudo labels, as at the start of an epoch."""
    with clock.stage("neighbors"):
        searching = partial(progress, title="Searching neighbors")
        _, ranks = k_nearest(features, K1, device=device, method=method, progress=searching)
    return labels_of(features, ranks, clock, device)


def labels_of(features: Tensor, ranks: Tensor, clock: Clock, device: str = "cpu") -> np.ndarray:
    with clock.stage("Jaccard graph"):
        graph = jaccard_graph(features, ranks, k1=K1, k2=K2, max_distance=EPS, device=device)
    with clock.stage("DBSCAN"):
        return dbscan(graph, eps=EPS)


def camera_recluster(features: Tensor, clock: Clock, device: str) -> np.ndarray:
    """The same with the camera-aware distance, as ``CLUSTER.DISTANCE ca_jaccard``; images lie in any of six cameras."""
    cameras = np.random.default_rng(1).integers(6, size=len(features))
    with clock.stage("camera-aware graph, with its search"):
        graph = camera_jaccard_graph(features, cameras, max_distance=EPS, device=device)
    with clock.stage("DBSCAN"):
        return dbscan(graph, eps=EPS)


def dense(features: Tensor, clock: Clock, device: str) -> np.ndarray:
    """The oracle of the tests; always on the CPU."""
    from dense_recluster import dense_recluster

    return dense_recluster(features, k1=K1, k2=K2, eps=EPS)


def faiss_device(device: str) -> str:
    return "GPU" if device == "cuda" and getattr(faiss, "get_num_gpus", int)() else "CPU"


def faiss_search(features: Tensor, clock: Clock, device: str) -> None:
    index = faiss.IndexFlatIP(features.shape[1])
    if faiss_device(device) == "GPU":
        index = faiss.index_cpu_to_all_gpus(index, ngpu=1)
    index.add(features.numpy())
    index.search(features.numpy(), K1)


def product_search(features: Tensor, clock: Clock, device: str) -> None:
    product_ranks(features, device)


def product_ranks(features: Tensor, device: str) -> Tensor:
    """Blocks of a matrix product, and the largest values of each row, in the precision of the features."""
    rows = F.normalize(features.to(device))
    return torch.cat([(block @ rows.T).topk(K1).indices for block in rows.split(1024)]).cpu()


def float64_recluster(features: Tensor, clock: Clock, device: str) -> np.ndarray:
    """The labels from neighbours searched in float64."""
    return labels_of(features, product_ranks(features.double(), device), clock)


def run(args: argparse.Namespace) -> None:
    """Measure the functions in turn, each in its own process, and print the table."""
    ours = "recluster"
    faiss_name = f"faiss IndexFlatIP on {faiss_device(args.device)}, search alone"
    works: dict[str, Work] = {
        ours: recluster,
        "recluster by ca_jaccard": camera_recluster,
        faiss_name: faiss_search,
        "float32 product + top-k, search alone": product_search,
    }
    if args.dense:
        works["dense oracle"] = dense
    print(f"{args.images} images x {args.dim} on {args.device}, median of {args.repeats}")
    print(f"{date.today()}, {machine(args.threads, args.device)}\n", flush=True)

    runs: dict[str, list[Measurement]] = {name: [] for name in works}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        file = Path(folder, "features.npy")
        draw_people(file, args.images, args.dim, per_person=17)
        start = partial(Worker, features=file, threads=args.threads, device=args.device)
        workers = {name: stack.enter_context(start(work)) for name, work in works.items()}
        for _ in range(args.repeats):
            for name, worker in workers.items():
                runs[name].append(worker.run())
        labels = runs[ours][-1].result
        others = {"the dense oracle": runs["dense oracle"][-1].result} if args.dense else {}
        if args.images <= FLOAT64_LIMIT:
            others["neighbors searched in float64"] = workers[ours].run(float64_recluster).result

    print(table(runs, baseline=faiss_name) + "\n")
    print(f"{labels.max() + 1} clusters, {(labels < 0).mean():.1%} noise")
    for name, other in others.items():
        print(f"labels equal to those of {name}: {'yes' if np.array_equal(labels, other) else 'NO'}")


def table(runs: dict[str, list[Measurement]], baseline: str) -> str:
    """A row per function and per stage, in Markdown; ratios are between the medians."""
    reference = statistics.median(run.total for run in runs[baseline])
    rows = []
    for name, measurements in runs.items():
        last = measurements[-1]
        for stage in last.seconds:
            seconds = [run.seconds[stage] for run in measurements]
            median = statistics.median(seconds)
            row = [f"- {stage}", median, min(seconds), max(seconds), median / reference]
            rows.append([name, *row[1:], last.beside, last.gpu_peak or None] if stage == "total" else row)
    headers = ["", "seconds", "fastest", "slowest", "ratio to faiss", "MiB beside the features", "MiB on the GPU"]
    if not any(run.gpu_peak for measurements in runs.values() for run in measurements):
        headers, rows = headers[:-1], [row[:6] for row in rows]
    forms = ["", ".3f", ".3f", ".3f", ".2f", ".0f", ".0f"]
    return tabulate(rows, headers, tablefmt="pipe", floatfmt=forms[: len(headers)])
