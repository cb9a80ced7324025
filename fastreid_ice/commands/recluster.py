"""Clusters features, or images with a trained model, and writes a label for each of them to a CSV file.

fastreid-ice recluster --run logs/ice_folder CLUSTER.K1 20
fastreid-ice recluster --run logs/ice_folder --images path/to/other/crops
fastreid-ice recluster --run logs/ice_folder --sweep
fastreid-ice recluster --run logs/ice_folder CORRECTIONS logs/ice_folder/corrections.csv
fastreid-ice recluster --features features.npy CLUSTER.EPS 0.5 CLUSTER.K1 20
fastreid-ice recluster --images path/to/crops --config-file configs/ice_folder.yml \
    MODEL.WEIGHTS logs/ice_folder/model_final.pth

The file has the columns path, camera, label (0, 1, ..., or -1 for noise) and distance_to_centroid: 1 - cosine between
the image's feature and the mean of its cluster's unit features, for noise the nearest such mean. The config chooses the
clusterer and its CLUSTER.* keys, as in training; without a config file they are those of ICE, with CLUSTER.AUTO_K1 and
CLUSTER.AUTO_EPS in place of its K1 and EPS. --run, the OUTPUT_DIR of a run, stands for its own config and weights, and
without --images and --features for its training images.

Features are a float16, float32 or float64 array (N, D) in a .npy file, which is not read into memory as a whole; their
paths are row numbers unless --paths names a file with one per line. The images of a folder are those that training
would use (UnlabeledFolder: not query and gallery). Their cameras follow DATASETS.FOLDER.CAMERAS, and their features are
those of the encoder CLUSTER.FEATURES. An image that cannot be read becomes noise (DATALOADER.UNREADABLE).

CORRECTIONS corrections.csv keeps what a person has said about the images (docs/corrections.md). A run that was trained
with such a file keeps it for its own images; with --images or --features name it again.

--sweep writes no labels. It clusters with several K1 at 21 radii each, and shows the clusters, the noise, the largest
cluster and the expected F-measure by which CLUSTER.AUTO_EPS chooses a radius: as a table, in sweep.csv and as a
picture, sweep.png (--output names the first). No identities are needed. A good choice lies where the curves are flat
and no cluster is a giant; set it by CLUSTER.K1 and CLUSTER.EPS. The F-measure compares radii of one K1, not different
K1.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.modeling import build_model
from fastreid.utils.logger import setup_logger
from torch import Tensor

from ..clusterers import build_clusterer
from ..config import CONFIGS
from ..core import EpsSweep, ImageTable, choose_k1
from ..data import build_feature_loader, build_training_set, crop_size, inspect_images, read_corrections
from ..engine import Checkpointer, build_trained_config, extract_features
from ..engine.log import log_any_name
from ..errors import InputError
from ..progress import progress
from ..reporting import (
    PseudoLabels,
    centroid_distances,
    describe_doubt,
    draw_sweep,
    save_sweep,
    sweep_table,
)
from . import add_run, command_parser

DEFAULT_CONFIG = CONFIGS / "base-ice.yml"
BLOCK = 4096  # rows at a time
SWEPT = (6, 10, 15, 20, 30)  # K1, with that of the config

logger = logging.getLogger("fastreid.recluster")


@dataclass(frozen=True)
class Images:
    """What is known about N images.

    Args:
        features: (N, D) unit rows.
        usable: (N,) bool, False for an image that could not be read.
        paths, cameras: N texts, "" for an unknown camera.
        known: the same cameras as numbers, and what else is known.
    """

    features: Tensor
    usable: Tensor
    paths: Sequence[str | int]
    cameras: Sequence[str]
    known: ImageTable


def read_config(args: argparse.Namespace) -> tuple[CfgNode, str]:
    """The config, checked as for training, and the weights of its encoder.

    Raises:
        InputError: a key that cannot work, or a config without an encoder for the images.
    """
    if args.features:
        fixed = ["MODEL.WEIGHTS", ""]
    elif args.images:
        fixed = ["DATASETS.ROOT", repr(args.images), "DATASETS.NAMES", "('UnlabeledFolder',)", "DATASETS.TESTS", "()"]
    else:
        fixed = ["DATASETS.TESTS", "()"]
    if args.run and (args.features or args.images) and "CORRECTIONS" not in args.options[::2]:
        fixed += ["CORRECTIONS", ""]  # those of the run are about its own images
    automatic: list[str] = []
    if not (args.config_file or args.run):  # the published K1 and EPS are made for other numbers of images and networks
        automatic = [f"CLUSTER.AUTO_{key}" for key in ("K1", "EPS") if f"CLUSTER.{key}" not in args.options[::2]]
    options = [*(part for key in automatic for part in (key, "True")), *args.options, *fixed]
    cfg, weights = build_trained_config(args.config_file or str(DEFAULT_CONFIG), args.run, options)
    if not (args.features or weights):
        raise InputError("MODEL.WEIGHTS is empty: it must name the checkpoint of a trained model")
    return cfg, weights


def read_features(path: str, names: str | None, corrections: str = "") -> Images:
    """The rows of a .npy file; they stay on the disk if they are unit rows. ``corrections`` is a file about ``names``.

    Raises:
        InputError: no such file, another format, shape or type, rows without a direction, or a wrong number of names.
    """
    try:
        array = np.load(path, mmap_mode="c")  # not "r": torch warns about read-only arrays
    except OSError as error:
        raise InputError(f"--features {path}: {error.strerror or error}") from error
    except (EOFError, ValueError) as error:
        raise InputError(f"--features {path} is not a .npy file of numbers: {error}") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"--features {path} is an archive of arrays; save one of them with numpy.save")
    if array.ndim != 2 or array.dtype not in (np.float16, np.float32, np.float64):
        raise InputError(
            f"--features {path} must hold a float16, float32 or float64 array (N, D), not {array.dtype} {array.shape}"
        )
    if len(array) < 3:
        raise InputError(f"--features {path} holds {len(array)} rows; at least 3 are needed")
    paths: Sequence[str | int] = range(len(array))
    if names:
        try:
            text = Path(names).read_text(encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise InputError(f"--paths {names}: {error.strerror}") from error
        paths = text.removesuffix("\n").split("\n")
        if len(paths) != len(array):
            raise InputError(f"--paths {names} has {len(paths)} lines, but {path} has {len(array)} rows")
    features = unit_rows(torch.from_numpy(array), path)
    said = read_corrections(corrections, [str(name) for name in paths]) if corrections else None
    unknown = ImageTable(cameras=torch.full((len(array),), -1), corrections=said)
    return Images(features, torch.ones(len(array), dtype=torch.bool), paths, [""] * len(array), unknown)


def unit_rows(features: Tensor, path: str) -> Tensor:
    """``features`` themselves if all rows have length 1, else a scaled copy of at least float32."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    norms = torch.cat([block.to(dtype).norm(dim=1) for block in progress(features.split(BLOCK), "Reading features")])
    unusable = ~(norms.isfinite() & (norms > 0))
    if unusable.any():
        raise InputError(
            f"--features {path}: row {int(unusable.int().argmax())} and {int(unusable.sum()) - 1} more of {len(norms)} "
            "are all zeros, or hold NaN or infinity"
        )
    if ((norms - 1).abs() < 1e-3).all():
        return features
    return features.to(dtype, copy=True).div_(norms[:, None])


def extract(cfg: CfgNode, weights: str) -> Images:
    """The features of the images in ``DATASETS.ROOT``, extracted with the checkpoint ``weights``.

    Raises:
        InputError: images or weights that cannot be used.
    """
    images = build_training_set(cfg)
    inspect_images(images.paths, unreadable=cfg.DATALOADER.UNREADABLE, size=crop_size(cfg, "SIZE_TEST"))
    model = build_model(cfg)
    Checkpointer(model).load(weights)
    features, usable = extract_features(model, build_feature_loader(cfg, images), cfg.CLUSTER.FEATURES)
    return Images(features, usable, images.paths, images.named_cameras, images.known)


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def usable_features(images: Images) -> Tensor:
    """The features of the images that could be read.

    Raises:
        InputError: they are fewer than 3.
    """
    usable = images.usable
    if int(usable.sum()) < 3:
        raise InputError(f"only {int(usable.sum())} of {len(usable)} images can be read; at least 3 are needed")
    return images.features if usable.all() else images.features[usable]


def check_sweep(cfg: CfgNode) -> None:
    """Raises InputError if the clusterer has no K1 and radius to vary."""
    if cfg.CLUSTER.NAME != "JaccardDBSCAN" or cfg.CLUSTER.DISTANCE != "jaccard":
        raise InputError(
            f"--sweep varies CLUSTER.K1 and CLUSTER.EPS, which CLUSTER.NAME {cfg.CLUSTER.NAME} with CLUSTER.DISTANCE "
            f"{cfg.CLUSTER.DISTANCE} does not have; set them to JaccardDBSCAN and jaccard"
        )


def sweep(cfg: CfgNode, images: Images) -> dict[int, EpsSweep]:
    """K1 -> what ``choose_eps`` compares with it; an image that could not be read is left out."""
    features, known = usable_features(images), images.known[images.usable]
    own = choose_k1(len(features)) if cfg.CLUSTER.AUTO_K1 else cfg.CLUSTER.K1
    found = {}
    for k1 in sorted({min(k1, len(features) - 1) for k1 in (*SWEPT, own)}):
        varied = cfg.clone()
        varied.defrost()
        varied.merge_from_list(["CLUSTER.K1", k1, "CLUSTER.AUTO_K1", False, "CLUSTER.AUTO_EPS", True])
        clusterer = build_clusterer(varied)
        clusterer(features, known)
        found[k1] = clusterer.sweep
    return found


def recluster(cfg: CfgNode, images: Images, seconds: dict[str, float]) -> tuple[Tensor, Tensor]:
    """Labels (N,) and distances to the centroids (N,); an image that could not be read is noise."""
    usable = images.usable
    features = usable_features(images)
    clusterer = build_clusterer(cfg)
    labels, distances = torch.full((len(usable),), -1), torch.full((len(usable),), torch.nan)
    labels[usable] = clusterer(features, images.known[usable]).labels.cpu()
    seconds |= clusterer.seconds
    with timed(seconds, "distances"):
        distances[usable] = centroid_distances(features, labels[usable])
    return labels, distances


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_parser("recluster", __doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--features", metavar="FILE", help="features of N images, a .npy file (N, D)")
    source.add_argument(
        "--images", metavar="FOLDER", help="a folder of images; needs --run, or --config-file and MODEL.WEIGHTS"
    )
    config = parser.add_mutually_exclusive_group()
    add_run(config, "its config, weights and training images")
    config.add_argument(
        "--config-file",
        metavar="FILE",
        help="the config of the model, or of the clusterer alone; default: base-ice.yml",
    )
    parser.add_argument(
        "--paths", metavar="FILE", help="a text file with the path of each row of --features, one per line"
    )
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="the CSV file; default: labels.csv, or sweep.csv with --sweep"
    )
    parser.add_argument(
        "--sweep", action="store_true", help="instead of labels: clusters, noise and the largest cluster by K1 and eps"
    )
    parser.add_argument("options", nargs=argparse.REMAINDER, help="config keys and values, such as CLUSTER.EPS 0.5")
    args = parser.parse_args(arguments)
    if not (args.run or args.features or args.images):
        parser.error("nothing to cluster: name a run with --run, an array with --features, or a folder with --images")
    if args.images and not (args.run or args.config_file):
        parser.error("--images needs --run or --config-file")
    if args.paths and not args.features:
        parser.error("--paths names the rows of --features; leave it out")
    try:
        run(args)
    except InputError as error:
        sys.exit(f"error: {error}")


def run(args: argparse.Namespace) -> None:
    """Raises InputError if the arguments cannot work; nothing is written then."""
    output = args.output or Path("sweep.csv" if args.sweep else "labels.csv")
    if not output.parent.is_dir() or output.is_dir():
        raise InputError(f"--output {output}: its folder is missing, or it is a folder itself")
    if args.sweep and output.suffix == ".png":
        raise InputError(f"--output {output} names the table of --sweep, beside which the picture is; end it in .csv")
    cfg, weights = read_config(args)
    if args.sweep:
        check_sweep(cfg)
    setup_logger()
    log_any_name()
    seconds: dict[str, float] = {}
    with timed(seconds, "features"):
        images = read_features(args.features, args.paths, cfg.CORRECTIONS) if args.features else extract(cfg, weights)
    if args.sweep:
        report_sweep(sweep(cfg, images), output, num_images=int(images.usable.sum()))
        return
    labels, distances = recluster(cfg, images, seconds)
    with explaining_output(output):
        PseudoLabels(images.paths, images.cameras, labels.numpy(), distances.numpy()).write(output)
    sizes = torch.bincount(labels[labels >= 0])
    logger.info("Seconds: %s", ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items()))
    print(
        f"{len(labels)} images, {len(sizes)} clusters, {(labels < 0).float().mean():.1%} noise, largest cluster "
        f"{max(sizes.tolist(), default=0)} images: {output}"
    )
    if doubt := describe_doubt(labels[images.usable].numpy(), cfg):
        print(doubt)


def report_sweep(sweeps: dict[int, EpsSweep], output: Path, *, num_images: int) -> None:
    """Writes a sweep as a CSV file, with a picture of the same name beside it, and prints it as a table."""
    picture = output.with_suffix(".png")
    with explaining_output(output):
        save_sweep(sweeps, output)
    with explaining_output(picture):
        draw_sweep(sweeps, picture, num_images=num_images)
    print(sweep_table(sweeps))
    print(f"{num_images} images; * has the highest expected F-measure of its K1. All radii: {output}, {picture}")


@contextmanager
def explaining_output(path: Path) -> Iterator[None]:
    """Turns a file system error into one sentence about ``path``."""
    try:
        yield
    except OSError as error:
        raise InputError(f"--output {path}: {error.strerror}") from error
