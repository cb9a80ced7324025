#!/usr/bin/env python
"""Measures reclustering, a training step, the input pipeline, evaluation, and what a whole recipe takes.

fastreid-ice bench recluster
fastreid-ice bench recluster --images 32621 --dense
fastreid-ice bench scaling
fastreid-ice bench scaling --neighbors exact --images 1000000 --exact-limit 1000000 --device cuda
fastreid-ice bench step
fastreid-ice bench step --batch 32 --compile --device cuda
fastreid-ice bench input --config-file configs/ice_market.yml
fastreid-ice bench evaluate
fastreid-ice bench evaluate --queries 11659 --gallery 82161 --repeats 1
fastreid-ice bench recipe --config-file configs/ice_market.yml --synthetic --images 300 --steps 5
fastreid-ice bench recipe --synthetic --device cuda --steps 100 --profile MODEL.COMPILE True DATALOADER.CACHE ram

recluster: stages, total and peak memory, beside faiss's exact search alone, a plain matrix product with top-k alone,
and, with --dense, the dense oracle of the tests; in turns, each in a process of its own. Tells whether the labels are
those of neighbors searched in float64, and of the oracle.

scaling: time and peak memory over the number of images, for each way to search neighbors, with the adjusted Rand index
to the truth and to the labels of the exact search. Each row is a process of its own and is kept in OUTPUT/rows.jsonl:
called again, the command measures what is missing. Pictures go to scaling_seconds.png and scaling_memory.png.

step: a step of camera-aware ICE beside one in the schedule of the published code, which runs the network five times and
its losses sample by sample; with mixed precision and torch.compile, and what everything but the networks costs. Images
are noise, weights are random.

input: images per second of each stage from the file to the network, of the whole training loader with and without
workers and cache, and of the network: a training step, and features. Tells whether the loader is ahead of the step, and
what extraction takes beside the network's own time.

evaluate: seconds and peak memory of ranking a gallery, with --rerank after re-ranking, beside fast-reid's own in Python
and, where it is compiled, in Cython; in turns, each in a process of its own. Tells whether the figures are equal. The
second example has the size of MSMT17, where fast-reid's distances and their order alone are 11.5 GB.

recipe: reclustering, training and evaluation of one epoch of the real trainer, in each stage of the recipe, and what
all of its epochs take at that pace. With --synthetic the images are drawn, as many as Market-1501 has, once, in the
folder of data sets; without, they are those of the config. Weights are random; steps learn true identities where they
are known, since such weights find no clusters to speak of.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import benchmark_evaluate
import benchmark_input
import benchmark_recipe
import benchmark_recluster
import benchmark_scaling
import benchmark_step
import torch

from fastreid_ice import InputError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("recluster", help="one reclustering beside its baselines")
    command.add_argument("--images", type=int, default=12936, help="default: 12936, as in Market-1501's training set")
    command.add_argument(
        "--dim", type=int, default=2048, help="dimensions of a feature; default: 2048, as of ResNet-50"
    )
    command.add_argument("--repeats", type=int, default=5, help="how often each is measured; default: 5")
    command.add_argument(
        "--dense",
        action="store_true",
        help="with the oracle of the tests (a checkout), which holds several N x N matrices",
    )
    command.set_defaults(run=benchmark_recluster.run)

    command = commands.add_parser("scaling", help="growth with the number of images")
    sizes = [10_000, 30_000, 100_000, 300_000, 1_000_000]
    command.add_argument("--images", type=int, nargs="+", default=sizes, help=f"default: {' '.join(map(str, sizes))}")
    command.add_argument("--dim", type=int, default=256, help="dimensions of a feature; default: 256")
    command.add_argument(
        "--neighbors",
        nargs="+",
        choices=benchmark_scaling.METHODS,
        default=benchmark_scaling.METHODS,
        help="ways to search; default: all",
    )
    command.add_argument(
        "--exact-limit", type=int, default=300_000, help="images above which exact is left out; default: 300000"
    )
    command.add_argument("--output", type=Path, default=Path("logs/scaling"), help="a folder; default: logs/scaling")
    command.set_defaults(run=benchmark_scaling.run)

    command = commands.add_parser("step", help="a training step beside the published schedule")
    command.add_argument(
        "--network", choices=benchmark_step.NETWORKS, default="resnet50", help="the backbone; default: resnet50"
    )
    command.add_argument("--batch", type=int, default=16, help="images, four of each identity; default: 16")
    command.add_argument(
        "--size", type=int, nargs=2, default=(256, 128), metavar=("HEIGHT", "WIDTH"), help="pixels; default: 256 128"
    )
    command.add_argument(
        "--clusters", type=int, default=700, help="proxies to learn from, times six cameras; default: 700"
    )
    precisions = benchmark_step.PRECISIONS
    command.add_argument(
        "--precision", nargs="+", choices=precisions, default=precisions, help="of our step; default: all"
    )
    command.add_argument("--compile", action="store_true", help="our step with torch.compile as well, in a few minutes")
    command.add_argument("--repeats", type=int, default=5, help="how often each is measured; default: 5")
    command.set_defaults(run=benchmark_step.run)

    command = commands.add_parser("input", help="images per second from the file to the network")
    command.add_argument(
        "--config-file",
        metavar="FILE",
        default="configs/ice_market.yml",
        help="network, size, batch and transforms; default: configs/ice_market.yml",
    )
    command.add_argument("--images", type=int, default=768, help="crops of the embedded data; default: 768")
    command.add_argument(
        "--steps", type=int, default=20, help="batches drawn from a loader for one measurement; default: 20"
    )
    workers = benchmark_input.default_workers()
    command.add_argument("--workers", type=int, default=workers, help="of the loaders; default: one for each core")
    command.add_argument("--repeats", type=int, default=5, help="how often each is measured; default: 5")
    command.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes to the config")
    command.set_defaults(run=benchmark_input.run)

    command = commands.add_parser("evaluate", help="one evaluation beside fast-reid's own")
    command.add_argument("--queries", type=int, default=1000, help="default: 1000; MSMT17 has 11659")
    command.add_argument("--gallery", type=int, default=10_000, help="images; default: 10000; MSMT17 has 82161")
    command.add_argument(
        "--dim", type=int, default=2048, help="dimensions of a feature; default: 2048, as of ResNet-50"
    )
    command.add_argument("--repeats", type=int, default=5, help="how often each is measured; default: 5")
    command.add_argument("--rerank", action="store_true", help="with re-ranking, for which fast-reid needs N x N")
    command.set_defaults(run=benchmark_evaluate.run)

    command = commands.add_parser("recipe", help="an epoch, part by part, and the whole recipe")
    command.add_argument(
        "--config-file",
        metavar="FILE",
        default="configs/ice_market.yml",
        help="the recipe; default: configs/ice_market.yml",
    )
    command.add_argument("--synthetic", action="store_true", help="draw people in place of the config's data sets")
    command.add_argument(
        "--images",
        type=int,
        default=benchmark_recipe.MARKET_IMAGES,
        help="training crops to draw, with as many for query and gallery as in Market-1501; default: 12936, as there",
    )
    command.add_argument("--steps", type=int, default=20, help="training steps measured; default: 20")
    command.add_argument("--profile", action="store_true", help="with the three largest costs of a training step")
    command.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes to the config")
    command.set_defaults(run=benchmark_recipe.run)

    for command in commands.choices.values():
        command.add_argument(
            "--threads", type=int, default=torch.get_num_threads(), help="CPU threads; default: as many as torch takes"
        )
        command.add_argument(
            "--device", choices=("cpu", "cuda"), default="cpu", help="where it is computed; default: cpu"
        )
    args = parser.parse_args()
    least_of = dict.fromkeys(("queries", "dim", "threads", "repeats", "steps", "workers"), 1)
    least_of |= {"images": benchmark_recluster.K1, "gallery": 2 * benchmark_evaluate.MAX_RANK}
    least_of |= {"batch": 8, "size": 32, "clusters": 2}
    for name, least in least_of.items():
        given = getattr(args, name, least)
        if min([given] if isinstance(given, int) else given) < least:
            parser.error(f"--{name} must be at least {least}")
    if getattr(args, "dense", False) and not benchmark_recluster.TESTS.is_dir():
        parser.error(
            f"--dense: the oracle is one of the tests, and {benchmark_recluster.TESTS} is not there; use a checkout"
        )
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    try:
        args.run(args)
    except (ChildProcessError, InputError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
