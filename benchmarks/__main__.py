"""Measures reclustering, a training step, the input pipeline, evaluation, and the time of a whole recipe.

fastreid-ice bench recluster
fastreid-ice bench recluster --images 32621 --dense
fastreid-ice bench scaling
fastreid-ice bench scaling --neighbors exact --images 1000000 --exact-limit 1000000 --device cuda
fastreid-ice bench sharing
fastreid-ice bench step
fastreid-ice bench step --batch 32 --compile --device cuda
fastreid-ice bench input --config-file configs/ice_market.yml
fastreid-ice bench evaluate
fastreid-ice bench evaluate --queries 11659 --gallery 82161 --repeats 1 --rerank ca_jaccard
fastreid-ice bench recipe --config-file configs/ice_market.yml --synthetic --images 300 --steps 5
fastreid-ice bench recipe --synthetic --device cuda --steps 100 --profile MODEL.COMPILE True DATALOADER.CACHE ram
fastreid-ice bench market --weights osnet_x0_25_msmt17.pth --seeds 2
fastreid-ice bench time-to-accuracy --weights osnet_x0_25_msmt17.pth --methods ice o2cap_camera_norm
fastreid-ice bench tracks --weights osnet_x0_25_msmt17.pth
fastreid-ice bench precision --threads 1 --weights osnet_x0_25_msmt17.pth --mobilenet mobilenetv2_1.0_imagenet.pth
fastreid-ice bench corrections --features market_start.npz market_trained.npz --train 4
benchmarks/gpu.sh

recluster: stages, total and peak memory, also by the camera-aware distance, compared with only faiss's exact search,
only a plain matrix product with top-k, and, with --dense, the dense oracle of the tests; in turns, each in its own
process. Reports whether the labels are those of neighbours searched in float64, and of the oracle.

scaling: time and peak memory over the number of images, for each way to search neighbours, with the adjusted Rand index
to the truth and to the labels of the exact search. Each row is measured in its own process and kept in
OUTPUT/rows.jsonl: called again, the command measures the missing rows. Charts go to scaling_seconds.png and
scaling_memory.png.

sharing: the search for neighbours shared by several processes of this machine, as in training: processor seconds of
each process, what it receives from the others and how long that takes, and whether the labels stay the same.

step: a step of camera-aware ICE compared with the schedule of the published code, which runs the network five times and
its losses sample by sample; with mixed precision and torch.compile, and the cost of everything but the networks. Images
are noise, weights are random.

input: images per second of each stage from the file to the network, of the whole training loader with and without
workers and cache, and of the network: a training step, and features. Reports whether the loader is faster than the
step, and the time of extraction compared with the network's own.

evaluate: seconds and peak memory of ranking a gallery, with --rerank after re-ranking, compared with fast-reid's own in
Python and, if it is compiled, in Cython; in turns, each in its own process. Reports whether the metrics are equal. The
second example has the size of MSMT17, where fast-reid's distances and their order alone are 11.5 GB, and re-ranks by
the camera-aware Jaccard distance, which is measured alone.

recipe: reclustering, training and evaluation of one epoch of the real trainer, in each stage of the recipe, and the
time of all its epochs at that rate. With --synthetic the images are drawn once, as many as Market-1501 has, in the
folder of datasets; otherwise they are those of the config. Weights are random; steps learn true identities if they are
known, since such weights find hardly any clusters.

market: mAP and rank-1 of every method on Market-1501, from the weights of one small network and with one budget for a
CPU: the table of docs/market1501.md. Each run takes about half an hour of one core. Called again, the command keeps
complete runs and resumes the others.

time-to-accuracy: mAP on Market-1501 over wall and processor seconds, without and with evaluations, for methods of
`market`, which is where they train, one seed after the other; and how soon each of them reaches the mAP that the first
one ends at.

tracks: the adjusted Rand index of the first clustering, without and with tracks, of drawn people who cross the views of
cameras; and of Market-1501 with --weights, with tracks guessed from the names of its files, and with true ones.

precision: the exported encoder in float32, float16 and int8 in onnxruntime on the CPU: mAP and rank-1 on drawn people,
and on Market-1501 with --weights, also of crops resized as trackers do; the size of the file, and the time per crop,
measured in turns, also of larger networks with random weights.

corrections: the adjusted Rand index over the number of questions that the truth has answered, in order of doubt and in
random order, of drawn people and of saved features, and over links between images that nobody has chosen; with --train,
mAP after training without and with the answers.

gpu: the tests that need a GPU, and most of the above at full size on one, in a checkout, within ten minutes; all
figures go to one JSON file. benchmarks/gpu.sh runs it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from fastreid_ice import InputError
from fastreid_ice.commands import command_parser

from . import (
    corrections,
    evaluate,
    gpu,
    input,
    market,
    precision,
    recipe,
    recluster,
    scaling,
    sharing,
    step,
    time_to_accuracy,
    tracks,
)
from .measuring import check_least

# A benchmark has add_arguments(parser), check(args), which raises argparse.ArgumentError, and run(args).
BENCHMARKS = {
    "recluster": (recluster, "one reclustering compared with its baselines"),
    "scaling": (scaling, "growth with the number of images"),
    "sharing": (sharing, "the search for neighbours shared by several processes"),
    "step": (step, "a training step compared with the published schedule"),
    "input": (input, "images per second from the file to the network"),
    "evaluate": (evaluate, "one evaluation compared with fast-reid's own"),
    "recipe": (recipe, "an epoch, part by part, and the whole recipe"),
    "market": (market, "every method on Market-1501 with one small budget, for a CPU"),
    "time-to-accuracy": (time_to_accuracy, "the mAP on Market-1501 over the time of training"),
    "tracks": (tracks, "the first clustering without and with tracks"),
    "precision": (precision, "what an export in float16 or int8 keeps and costs"),
    "gpu": (gpu, "all that needs a GPU, in one run"),
    "corrections": (corrections, "a person's answers, the most doubtful questions first or in random order"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_parser("bench", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (benchmark, purpose) in BENCHMARKS.items():
        command = commands.add_parser(name, help=purpose)
        benchmark.add_arguments(command)
        command.add_argument(
            "--threads", type=int, default=torch.get_num_threads(), help="CPU threads; default: as many as torch uses"
        )
        command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="the device; default: cpu")
    args = parser.parse_args(arguments)
    benchmark, _ = BENCHMARKS[args.command]
    try:
        check_least(args, threads=1)
        benchmark.check(args)
    except argparse.ArgumentError as error:
        parser.error(str(error))
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    try:
        benchmark.run(args)
    except (ChildProcessError, InputError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
