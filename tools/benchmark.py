#!/usr/bin/env python
"""Times parts of the package on synthetic input.

python tools/benchmark.py recluster
python tools/benchmark.py recluster --images 200000 --dim 512 --threads 16
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from fastreid_ice.core import dbscan, jaccard_graph, k_nearest  # before faiss: the package orders their imports

# isort: split
import faiss
import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

EPS, K1, K2 = 0.55, 30, 6


def synthetic_features(images: int, dim: int, seed: int = 0) -> Tensor:
    """Unit rows (images, dim) around one centre for every 17 images, as in Market-1501, and an offset per camera."""
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int) -> Tensor:
        return torch.randn(rows, dim, generator=generator)

    people, cameras = max(images // 17, 1), 6
    person = torch.randint(people, (images,), generator=generator)
    camera = torch.randint(cameras, (images,), generator=generator)
    return F.normalize(draw(people)[person] + 0.5 * draw(cameras)[camera] + 3 * draw(images))


def timed(seconds: dict[str, list[float]], name: str, work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = work()
    seconds.setdefault(name, []).append(time.perf_counter() - start)
    return result


def recluster(features: Tensor, seconds: dict[str, list[float]], device: str) -> Any:
    """Features to pseudo labels, as at the start of an epoch."""
    _, ranks = timed(seconds, "k_nearest", lambda: k_nearest(features, K1, device=device))
    graph = timed(seconds, "jaccard_graph", lambda: jaccard_graph(features, ranks, k1=K1, k2=K2, max_distance=EPS))
    return timed(seconds, "dbscan", lambda: dbscan(graph, eps=EPS))


def faiss_search(features: Tensor) -> None:
    index = faiss.IndexFlatIP(features.shape[1])
    index.add(features.numpy())
    index.search(features.numpy(), K1)


def peak_mib() -> float:
    """Peak resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def run_recluster(args: argparse.Namespace) -> None:
    """Time a whole reclustering, stage by stage, beside faiss's exact search alone; medians over the repeats."""
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    recluster(synthetic_features(500, 16), {}, args.device)  # compiles
    features = synthetic_features(args.images, args.dim)
    seconds: dict[str, list[float]] = {}
    for _ in range(args.repeats):
        labels = timed(seconds, "recluster, all stages", lambda: recluster(features, seconds, args.device))
    peak = peak_mib()
    for _ in range(args.repeats):
        timed(seconds, "faiss IndexFlatIP, CPU", lambda: faiss_search(features))

    medians = {name: statistics.median(values) for name, values in seconds.items()}
    baseline = medians["faiss IndexFlatIP, CPU"]
    rows = [(name, value, value / baseline) for name, value in medians.items()]
    print(f"{args.images} images x {args.dim} on {args.device}, {args.threads} CPU threads, median of {args.repeats}")
    print(tabulate(rows, headers=["stage", "seconds", "ratio to faiss"], floatfmt=".3f"))
    print(f"{labels.max() + 1} clusters, {(labels < 0).mean():.1%} noise")
    print(f"peak resident memory of the process before faiss ran: {peak:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("recluster", help="neighbours, Jaccard graph and DBSCAN of one epoch")
    command.add_argument("--images", type=int, default=12936, help="as in the training set of Market-1501")
    command.add_argument("--dim", type=int, default=2048, help="as of ResNet-50")
    command.add_argument("--threads", type=int, default=torch.get_num_threads())
    command.add_argument("--device", default="cpu", help="where neighbours are searched")
    command.add_argument("--repeats", type=int, default=3)
    command.set_defaults(run=run_recluster)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
