"""Every method on Market-1501, from one start and at one budget that a CPU can afford."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fastreid_ice import InputError
from fastreid_ice.commands.compare import compare
from fastreid_ice.config import CONFIGS

STEPS = 150  # of an epoch
PASS = 12936 // 32  # steps of an epoch of fast-reid's Baseline
FAST_STEPS = 225  # of an epoch of the fast recipe, which clusters less often
FROZEN = ("backbone.conv1", "backbone.conv2")  # which have most of the pixels
# One network, one schedule and one batch for all: epochs of 150 steps of 32 images. The published temperatures, radii,
# samplers and augmentations stay; the momentum encoder and the warm-up are shortened as the training is.
BUDGET = {
    "MODEL.BACKBONE.NAME": "build_osnet_backbone",
    "MODEL.BACKBONE.DEPTH": "x0_25",
    "MODEL.BACKBONE.FEAT_DIM": 128,
    "MODEL.BACKBONE.WITH_IBN": False,
    "MODEL.BACKBONE.PRETRAIN": True,
    "MODEL.HEADS.POOL_LAYER": "GlobalAvgPool",  # that of the weights
    "MODEL.MOMENTUM.ALPHA": 0.997,
    "INPUT.SIZE_TRAIN": (256, 128),
    "INPUT.SIZE_TEST": (256, 128),
    "DATALOADER.NUM_INSTANCE": 4,
    "DATALOADER.NUM_WORKERS": 0,
    "DATALOADER.CACHE": "ram",
    "SOLVER.AMP.ENABLED": True,
    "SOLVER.IMS_PER_BATCH": 32,
    "SOLVER.ITERS_PER_EPOCH": STEPS,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "TEST.EVAL_PERIOD": 2,
}


class Method(NamedTuple):
    """A row of the table: a config, and its settings in addition to the common budget."""

    config: str
    settings: dict[str, object]


ICE = {"SOLVER.WARMUP_ITERS": 300}
# A part of 8 images is too small to normalise for a recipe that splits 256.
PROXIES = {"MODEL.BN_SPLITS": 1}
CAMERAS = {"CLUSTER.CAMERA_NORM": True}
PRECISE = {"TEST.PRECISE_BN.ENABLED": True, "TEST.PRECISE_BN.NUM_ITER": 40}
# The average of the weights, with statistics of its own, is ahead of the weights themselves; it needs no warm-up.
AVERAGED = {
    "TEST.ENCODER": "momentum",
    "CLUSTER.FEATURES": "momentum",
    "MODEL.MOMENTUM.ALPHA": 0.99,
    "TEST.PRECISE_BN.ENABLED": True,
    "TEST.PRECISE_BN.NUM_ITER": 20,
    "SOLVER.BASE_LR": 0.0007,
    "SOLVER.WARMUP_ITERS": 50,
    "SOLVER.WARMUP_FACTOR": 0.1,
}
FAST = {"SOLVER.ITERS_PER_EPOCH": FAST_STEPS, "TEST.EVAL_PERIOD": 1, "MODEL.FROZEN": FROZEN}
REFINED = ("NeighborLabelLoss", "CrossCameraLoss", "HardInstanceLoss", "SoftConsistencyLoss")
METHODS = {
    "ice_agnostic": Method("ice_agnostic_market", ICE),
    "ice": Method("ice_market", ICE),
    "cluster_contrast": Method("cluster_contrast_market", PROXIES),
    "dcmip": Method("dcmip_market", PROXIES | {"MODEL.LOSSES.MULTI_INSTANCE.NUM_INSTANCES": 4}),
    "hybrid": Method("ice_hybrid_market", ICE),
    "o2cap": Method("o2cap_market", ICE),
    "ice_camera_norm": Method("ice_market", ICE | CAMERAS),
    "hybrid_camera_norm": Method("ice_hybrid_market", ICE | CAMERAS),
    "o2cap_camera_norm": Method("o2cap_market", ICE | CAMERAS),
    "o2cap_camera_norm_ca_jaccard": Method("o2cap_market", ICE | CAMERAS | {"CLUSTER.DISTANCE": "ca_jaccard"}),
    "hybrid_camera_norm_precise_bn": Method("ice_hybrid_market", ICE | CAMERAS | PRECISE),
    "ice_ca_jaccard": Method("ice_market", ICE | {"CLUSTER.DISTANCE": "ca_jaccard"}),
    "ice_auto_eps": Method("ice_market", ICE | {"CLUSTER.AUTO_EPS": True}),
    "ice_neighbor_labels": Method("ice_market", ICE | {"MODEL.LOSSES.NAME": REFINED}),
    "o2cap_camera_norm_averaged": Method("o2cap_market", CAMERAS | AVERAGED),
    "fast": Method("o2cap_market", CAMERAS | AVERAGED | FAST),
    "ice_groundtruth": Method("ice_groundtruth_market", ICE),
    # Its epochs are passes over the images, whatever this key says; the record of a run divides its steps by the key.
    "baseline": Method("baseline_market", ICE | {"TEST.EVAL_PERIOD": 1, "SOLVER.ITERS_PER_EPOCH": PASS}),
}


def add_arguments(parser: argparse.ArgumentParser, output: str = "logs/market") -> None:
    parser.add_argument(
        "--weights",
        metavar="FILE",
        type=Path,
        required=True,
        help="of OSNet x0_25, bare, for MODEL.BACKBONE.PRETRAIN_PATH",
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument(
        "--epochs", type=int, default=10, help="of each run, those of both stages together for DCMIP; even; default: 10"
    )
    parser.add_argument("--seeds", type=int, default=2, help="runs of each method; default: 2")
    parser.add_argument("--output", metavar="FOLDER", type=Path, default=Path(output), help=f"default: {output}")


def check(args: argparse.Namespace) -> None:
    if args.seeds < 1:
        raise argparse.ArgumentError(None, "--seeds must be at least 1")
    if args.epochs < 2 or args.epochs % 2:
        raise argparse.ArgumentError(None, "--epochs must be even, since DCMIP has two stages, and at least 2")
    if not args.weights.is_file():
        raise argparse.ArgumentError(None, f"--weights: no file {str(args.weights)!r}")


def run(args: argparse.Namespace, settings: Mapping[str, object] | None = None) -> None:
    """Trains what is left to train of each method, with further settings for all.

    Raises:
        InputError: a run failed.
    """
    common = BUDGET | {"MODEL.DEVICE": args.device, "MODEL.BACKBONE.PRETRAIN_PATH": str(args.weights)}
    complete = compare(
        {name: CONFIGS / f"{METHODS[name].config}.yml" for name in args.methods},
        args.seeds,
        args.output,
        as_options(common),
        {name: as_options(own_settings(name, args.epochs) | (settings or {})) for name in args.methods},
    )
    if not complete:
        raise InputError("some runs failed; the same command resumes them")


def own_settings(method: str, epochs: int) -> dict[str, object]:
    """With as many steps as ``epochs`` have, or the nearest number that the method can take."""
    own_epochs = {
        "dcmip": epochs // 2,
        "fast": round(epochs * STEPS / FAST_STEPS),
        "baseline": round(epochs * STEPS / PASS),
    }
    return METHODS[method].settings | {"SOLVER.MAX_EPOCH": own_epochs.get(method, epochs)}


def as_options(settings: dict[str, object]) -> list[str]:
    return [str(part) for setting in settings.items() for part in setting]
