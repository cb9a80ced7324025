"""What lower precisions of an exported encoder keep and cost: mAP, rank-1, size of the file, and time per crop."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.data.data_utils import read_image
from fastreid.modeling import build_model
from PIL import Image
from tabulate import tabulate
from torch import Tensor, nn

from fastreid_ice.data import build_test_loader, crop_size
from fastreid_ice.deploy import export_onnx
from fastreid_ice.deploy.graph import UnitFeatures, checked_graph, example_images
from fastreid_ice.deploy.precision import PRECISIONS, to_float16, to_int8
from fastreid_ice.engine import BlockedReidEvaluator, Checkpointer, build_own_config
from fastreid_ice.progress import progress

from .market import BUDGET, as_options
from .measuring import check_least, machine

BATCHES = (1, 32)
RESIZED = "float32, resized as trackers do"
SCALES, NUM_RESIZED = (0.5, 1, 2, 3, 4), 100  # sizes of crops, of the network's input, and how many of each
NETWORKS = {
    "MobileNetV2": ("build_mobilenetv2_backbone", "1.0x", 1280),
    "ResNet-50": ("build_resnet_backbone", "50x", 2048),
}
KEYS = ("MODEL.BACKBONE.NAME", "MODEL.BACKBONE.DEPTH", "MODEL.BACKBONE.FEAT_DIM")

Sessions = dict[str, onnxruntime.InferenceSession]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights", metavar="FILE", type=Path, help="of OSNet x0_25, bare, for Market-1501; default: drawn people only"
    )
    parser.add_argument(
        "--mobilenet", metavar="FILE", type=Path, help="of MobileNetV2 from ImageNet, bare, for drawn people too"
    )
    parser.add_argument("--repeats", type=int, default=5, help="how often each time is measured; default: 5")


def check(args: argparse.Namespace) -> None:
    check_least(args, repeats=1)
    for name in ("weights", "mobilenet"):
        file = getattr(args, name)
        if file is not None and not file.is_file():
            raise argparse.ArgumentError(None, f"--{name}: no file {str(file)!r}")


def run(args: argparse.Namespace) -> None:
    """Print a table for each test set, and one of larger networks, as soon as each is measured."""
    torch.set_num_threads(args.threads)
    print(f"{machine(args.threads, 'cpu')}, onnxruntime {onnxruntime.__version__}")
    demo = {"MODEL.DEVICE": "cpu", "DATALOADER.NUM_WORKERS": 0}
    cfg = build_own_config("ice_demo.yml", as_options(demo))
    report("Drawn people, OSNet x0_25", cfg, args)
    print("\nCosine of their features, resized as trackers do and as here, by the size of the crops\n")
    print(tabulate(resizing(cfg), ["crops", "mean", "lowest"], "pipe", floatfmt=".4f"), flush=True)
    if args.weights:
        settings = BUDGET | demo | {"MODEL.BACKBONE.PRETRAIN_PATH": str(args.weights), "DATALOADER.CACHE": "none"}
        report("Market-1501, OSNet x0_25", build_own_config("ice_market.yml", as_options(settings)), args)
    if args.mobilenet:
        weights = {"MODEL.BACKBONE.PRETRAIN": True, "MODEL.BACKBONE.PRETRAIN_PATH": str(args.mobilenet)}
        cfg = build_own_config("ice_demo.yml", as_options(demo | network("MobileNetV2") | weights))
        report("Drawn people, MobileNetV2 from ImageNet", cfg, args)
    for name in NETWORKS:
        settings = demo | network(name) | {"INPUT.SIZE_TEST": (256, 128)}
        cfg = build_own_config("ice_demo.yml", as_options(settings))
        report(f"{name}, random weights, no test set", cfg, args, tested=False)


def network(name: str) -> dict[str, object]:
    """The keys of one of ``NETWORKS``, without the demo's weights."""
    return {**dict(zip(KEYS, NETWORKS[name], strict=True)), "MODEL.WEIGHTS": ""}


def report(title: str, cfg: CfgNode, args: argparse.Namespace, *, tested: bool = True) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = export(cfg, Path(folder)) if tested else untrained(cfg, Path(folder))
        sessions = {precision: session(path, args.threads) for precision, path in files.items()}
        sizes = {precision: path.stat().st_size / 1e6 for precision, path in files.items()}
    metrics = evaluate(cfg, sessions) if tested else {}
    times = latencies(sessions, crop_size(cfg, "SIZE_TEST"), args.repeats)
    rows = []
    for name in (*sessions, *metrics.keys() - sessions.keys()):
        row = [name, *metrics.get(name, (None, None))]
        if name in sessions:
            row += [sizes[name]]
            for batch in BATCHES:
                own = times[name][batch]
                row += [own, own / times["float32"][batch]]
        rows.append(row)
    heads = ["", "mAP", "rank-1", "MB"]
    heads += [head for batch in BATCHES for head in (f"ms, batch {batch}", "of float32's")]
    print(f"\n{title}, {' x '.join(map(str, crop_size(cfg, 'SIZE_TEST')))}\n")
    print(tabulate(rows, heads, "pipe", floatfmt=("", ".1f", ".1f", ".2f", *(".2f", ".2f") * len(BATCHES))), flush=True)


def export(cfg: CfgNode, folder: Path, precisions: tuple[str, ...] = PRECISIONS) -> dict[str, Path]:
    """Precision -> the ONNX file of the encoder of ``cfg``."""
    torch.manual_seed(0)
    model = build_model(cfg)
    if cfg.MODEL.WEIGHTS:
        Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    return {precision: export_onnx(cfg, model, folder, precision=precision)[0] for precision in precisions}


def untrained(cfg: CfgNode, folder: Path) -> dict[str, Path]:
    """The same for random weights, whose features mean nothing: lower precisions may change them as they like.

    Batch norms get the statistics of noise: without any, features overflow in float16.
    """
    torch.manual_seed(0)
    model = build_model(cfg)
    noise = 255 * torch.rand(16, 3, *crop_size(cfg, "SIZE_TEST"))
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = 1.0
    with torch.no_grad():
        model.train().encode(noise, model.test_encoder)
        encoder, examples = UnitFeatures(model), example_images(cfg)
        graph, _ = checked_graph(encoder, examples, [encoder(batch) for batch in examples], cfg.MODEL.BACKBONE.NAME)
    graphs = {"float32": graph, "float16": to_float16(graph), "int8": to_int8(graph, noise)}
    for precision, content in graphs.items():
        (folder / precision).write_bytes(content)
    return {precision: folder / precision for precision in graphs}


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def features(encoder: onnxruntime.InferenceSession, images: Tensor) -> Tensor:
    return torch.from_numpy(encoder.run(None, {"images": images.float().numpy()})[0])


def evaluate(cfg: CfgNode, sessions: Sessions) -> dict[str, tuple[float, float]]:
    """Precision -> mAP and rank-1 on the test set; also in float32 of crops that are resized as trackers do."""
    loader, num_query = build_test_loader(cfg, cfg.DATASETS.TESTS[0])
    evaluators = {name: BlockedReidEvaluator(cfg, num_query) for name in (*sessions, RESIZED)}
    size = crop_size(cfg, "SIZE_TEST")
    for batch in progress(loader, "Evaluating all precisions"):
        for name, encoder in sessions.items():
            evaluators[name].process(batch, features(encoder, batch["images"]))
        crops = (read_image(loader.dataset.paths[index]) for index in batch["indices"].tolist())
        resized = torch.cat([bilinear(crop, size) for crop in crops])
        evaluators[RESIZED].process(batch, features(sessions["float32"], resized))
    results = {name: evaluator.evaluate() for name, evaluator in evaluators.items()}
    return {name: (found["mAP"], found["Rank-1"]) for name, found in results.items()}


def resizing(cfg: CfgNode) -> list[tuple[str, float, float]]:
    """Height x width of crops, and the mean and the lowest cosine of their features, resized in both ways.

    The crops are test images, which Pillow first brings to that size.
    """
    height, width = crop_size(cfg, "SIZE_TEST")
    paths = build_test_loader(cfg, cfg.DATASETS.TESTS[0])[0].dataset.paths[-NUM_RESIZED:]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        encoder = session(export(cfg, Path(folder), ("float32",))["float32"], 1)
    for scale in SCALES:
        size = round(scale * height), round(scale * width)
        crops = [read_image(path).resize(size[::-1], Image.Resampling.BICUBIC) for path in paths]
        ours = [pixels(crop.resize((width, height), Image.Resampling.BICUBIC)) for crop in crops]
        theirs = [bilinear(crop, (height, width)) for crop in crops]
        cosines = F.cosine_similarity(*(features(encoder, torch.cat(images)) for images in (ours, theirs)))
        rows.append((f"{size[0]} x {size[1]}", float(cosines.mean()), float(cosines.min())))
    return rows


def pixels(image: Image.Image) -> Tensor:
    """(1, 3, H, W) float32 in [0, 255]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()


def bilinear(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """(1, 3, H, W) in [0, 255], resized by the two nearest pixels of each axis, without averaging where it shrinks.

    So does boxmot, with OpenCV, which also rounds to integers, and ultralytics, with this function.
    """
    return F.interpolate(pixels(image), size=size, mode="bilinear", align_corners=False)


def latencies(sessions: Sessions, size: tuple[int, int], repeats: int) -> dict[str, dict[int, float]]:
    """Precision -> images at a time -> ms of processor per crop, the median.

    In turns, and of the processor, so that other work on the machine slows all alike and hardly counts.
    """
    found: dict[str, dict[int, list[float]]] = {name: {batch: [] for batch in BATCHES} for name in sessions}
    images = 255 * torch.rand(max(BATCHES), 3, *size, generator=torch.Generator().manual_seed(0))
    for _ in range(repeats):
        for batch in BATCHES:
            for name, encoder in sessions.items():
                start = time.process_time()
                features(encoder, images[:batch])
                found[name][batch].append(1000 * (time.process_time() - start) / batch)
    return {name: {batch: statistics.median(own) for batch, own in times.items()} for name, times in found.items()}
