"""The search for neighbours, shared by several processes of this machine."""

from __future__ import annotations

import argparse
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from fastreid.utils import comm
from tabulate import tabulate
from torch import Tensor

from fastreid_ice.allocator import keep_freed_memory
from fastreid_ice.clusterers.jaccard_dbscan import shared_ranks
from fastreid_ice.core import k_nearest
from fastreid_ice.core.neighbors import METHODS
from fastreid_ice.testing import in_processes

from .measuring import WARM_UP, Clock, check_least, draw_people, machine
from .recluster import K1, labels_of
from .scaling import PER_PERSON, STRAYS


class Share(NamedTuple):
    """What one of several processes did, or all of them on average, or the slowest.

    Attributes:
        seconds: of the whole search.
        processor: processor seconds without the exchange.
        exchange: seconds until the others had answered; less in the process that all wait for.
        received: GiB from the others.
    """

    seconds: float
    processor: float
    exchange: float
    received: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=100_000, help="default: 100000")
    parser.add_argument("--dim", type=int, default=256, help="dimensions of a feature; default: 256")
    parser.add_argument("--neighbors", choices=METHODS, default="cells", help="the way to search; default: cells")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="default: 1 2 4")


def check(args: argparse.Namespace) -> None:
    check_least(args, images=K1, dim=1, processes=1)
    if args.device != "cpu":
        raise argparse.ArgumentError(None, "--device: the processes of this benchmark search on the CPU")


def run(args: argparse.Namespace) -> None:
    """Searches with each number of processes, and prints the table."""
    threads = f"{args.threads} threads of each process"
    print(f"{args.images:,} images x {args.dim} by {args.neighbors}, {threads}, one run")
    print(f"{date.today()}, {machine(args.threads, 'cpu')}\n", flush=True)
    rows, processor, expected = [], [], None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "features.npy")
        draw_people(file, args.images, args.dim, per_person=PER_PERSON, strays=STRAYS)
        for number in args.processes:
            found = in_processes(share, number, str(file), args.neighbors, args.threads)
            shares, labels = [one for one, _ in found], found[0][1]
            expected = labels if expected is None else expected
            mean, slowest = (Share(*function(shares, axis=0)) for function in (np.mean, np.max))
            equal = "yes" if np.array_equal(labels, expected) else "NO"
            rows.append([number, slowest.seconds, mean.processor, mean.exchange, mean.received, equal])
            processor.append(mean.processor)
    headers = ["processes", "seconds", "processor s of each", "exchange s", "GiB received by each", "labels equal"]
    print(tabulate(rows, headers, tablefmt="pipe", floatfmt=("", ".2f", ".2f", ".2f", ".3f", "")))
    if len(set(args.processes)) > 1:
        shared, own = np.polyfit([1 / number for number in args.processes], processor, 1)
        print(f"\nprocessor seconds of each: {shared:.2f} / processes + {own:.2f}")


def share(path: str, method: str, threads: int) -> tuple[Share, np.ndarray | None]:
    """The part of this process, and in the first one the labels that follow."""
    keep_freed_memory()  # as the commands do
    torch.set_num_threads(threads)
    features = torch.from_numpy(np.load(path, mmap_mode="c"))
    k_nearest(features[:WARM_UP], K1, method=method)  # compiles the kernels
    waited = exchanging = received = 0.0

    def exchange(part: Tensor) -> Tensor:
        nonlocal waited, exchanging, received
        start, busy = time.perf_counter(), time.process_time()
        joined = torch.cat(comm.all_gather(part))
        waited += time.perf_counter() - start
        exchanging += time.process_time() - busy
        received += (joined.nbytes - part.nbytes) / 2**30
        return joined

    comm.synchronize()
    start, busy = time.perf_counter(), time.process_time()
    ranks = shared_ranks(features, K1, method=method, gather=exchange)
    searched = Share(time.perf_counter() - start, time.process_time() - busy - exchanging, waited, received)
    return searched, labels_of(features, ranks, Clock("cpu")) if comm.is_main_process() else None
