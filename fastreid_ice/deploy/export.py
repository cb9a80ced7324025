"""Exports of a trained encoder: to an ONNX file, also for a tracker, and to fast-reid without this plugin."""

from __future__ import annotations

import io
from pathlib import Path

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, get_cfg
from fastreid.modeling import build_model
from torch import Tensor, nn

from ..data import build_feature_loader, build_training_set
from ..errors import InputError
from ..modeling import MomentumReID, is_timm
from .graph import UnitFeatures, checked_graph, compare, example_images, optional, run, write_files
from .precision import to_float16, to_int8
from .trackers import TRACKERS, fed_by

ONNX_FILE, WEIGHTS_FILE, CONFIG_FILE = "encoder.onnx", "fastreid.pth", "fastreid.yml"
CALIBRATED, CHECKED = 256, 64  # training images, at most, for the ranges of int8 and for the comparison
LEAST_COSINE = 0.9  # on average, of features in a lower precision with the encoder's


def export_encoder(cfg: CfgNode, model: MomentumReID, folder: Path) -> float:
    """Writes the encoder that ``TEST.ENCODER`` names to files in ``folder``, which is created if it is missing.

    ``encoder.onnx`` maps ``images``, float32 (N, 3, H, W), RGB in [0, 255], to ``features``, (N, D) of length 1.
    ``fastreid.pth`` and ``fastreid.yml`` are a checkpoint and a config of fast-reid's Baseline, which evaluates them
    with the same metrics as this plugin. fast-reid alone has no timm backbones, so such an encoder is exported only to
    the ONNX file. All exports are compared with ``model`` before any file is put in place.

    Args:
        cfg: the config of ``model``.
        model: with its weights, on any device; it is moved to the CPU and to evaluation mode.
        folder: earlier exports in it are replaced.

    Returns:
        The largest difference found between a coordinate of ``model``'s features, of length 1, and of the exports'.

    Raises:
        InputError: onnx or onnxruntime is not installed, the backbone has no ONNX graph, the features of an export
            differ from those of ``model``, or ``folder`` cannot be written. Earlier files in it are then unchanged.
    """
    optional("onnx"), optional("onnxruntime")
    plain_cfg = plain_config(cfg, folder)
    known = WEIGHTS_FILE in exported_files(cfg)
    plain = UnitFeatures(_plain_model(plain_cfg, model) if known else model.cpu())
    examples = example_images(cfg)
    with torch.no_grad():
        expected = [UnitFeatures(model.cpu())(images) for images in examples]
        difference = compare("fast-reid's Baseline", expected, [plain(images) for images in examples])
    graph, found = checked_graph(plain, examples, expected, cfg.MODEL.BACKBONE.NAME)
    files = {ONNX_FILE: graph}
    if known:
        weights = io.BytesIO()
        torch.save({"model": plain.model.state_dict()}, weights)
        files |= {WEIGHTS_FILE: weights.getvalue(), CONFIG_FILE: plain_cfg.dump().encode()}
    write_files(folder, files)
    for name in {WEIGHTS_FILE, CONFIG_FILE} - set(files):
        (folder / name).unlink(missing_ok=True)  # belongs to an earlier encoder
    return max(difference, found)


def export_onnx(
    cfg: CfgNode, model: MomentumReID, folder: Path, *, tracker: str | None = None, precision: str = "float32"
) -> tuple[Path, Tensor]:
    """Writes the encoder that ``TEST.ENCODER`` names as one ONNX file, for a tracker or in a lower precision.

    The file maps ``images``, float32 (N, 3, H, W) RGB, to ``features``, float32 (N, D) of length 1, for any N. Images
    are in [0, 255], or as the tracker feeds them (``TRACKERS``). In float16 the length is 1 up to 1e-3.

    Args:
        cfg: the config of ``model``.
        model: as for ``export_encoder``.
        folder: created if it is missing; other files in it stay.
        tracker: a key of ``TRACKERS``.
        precision: one of ``PRECISIONS``. For int8 the training images of ``cfg`` are read, at most 320 of them: four of
            five give the ranges of activations, the others are for the comparison.

    Returns:
        The file, and the cosine of its features with ``model``'s: for int8 of training images, otherwise of noise.

    Raises:
        InputError: as for ``export_encoder``; training images that cannot be used, or a precision in which the cosine
            is below 0.9 on average. An earlier file is then unchanged.
    """
    optional("onnx"), optional("onnxruntime")
    images = _training_images(cfg) if precision == "int8" else None  # read first, as that fails soonest
    feed = TRACKERS[tracker].of if tracker else Tensor.clone
    examples, encoder = example_images(cfg), UnitFeatures(model.cpu())
    fed = UnitFeatures(fed_by(TRACKERS[tracker], model)) if tracker else encoder
    with torch.no_grad():
        expected = [encoder(batch) for batch in examples]
    fed_examples = [feed(batch) for batch in examples]
    graph, _ = checked_graph(fed, fed_examples, expected, cfg.MODEL.BACKBONE.NAME)
    try:
        if precision == "float16":
            graph = to_float16(graph)
        elif images is not None:
            checked = torch.arange(len(images)) % 5 == 0
            graph = to_int8(graph, feed(images[~checked]))
            examples = list(images[checked].split(cfg.TEST.IMS_PER_BATCH))
            with torch.no_grad():
                expected = [encoder(batch) for batch in examples]
        found = run(graph, map(feed, examples))
    except Exception as error:  # as in checked_graph
        raise InputError(
            f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} cannot be converted to {precision}: "
            f"{str(error).strip().partition(chr(10))[0]}"
        ) from error
    cosines = F.cosine_similarity(torch.cat(expected), torch.cat(found))
    if not cosines.mean() >= LEAST_COSINE:  # so that NaN counts as too little
        raise InputError(
            f"in {precision} the features have a cosine of {cosines.mean():.2f} with the encoder's on average, less "
            f"than {LEAST_COSINE}: this network cannot be exported in that precision"
        )
    path = folder / "_".join(part for part in ("encoder", tracker, precision) if part and part != "float32")
    path = path.with_suffix(".onnx")
    write_files(folder, {path.name: graph})
    return path, cosines


def _training_images(cfg: CfgNode) -> Tensor:
    """(n, 3, H, W) float32 in [0, 255]: images of the training set, evenly spaced, at the size of the test transform.

    Raises:
        InputError: the training set is missing, or fewer than two of its images can be read.
    """
    training_set = build_training_set(cfg)
    number = min(CALIBRATED + CHECKED, len(training_set))
    rows = torch.arange(number) * len(training_set) // number
    batches = build_feature_loader(cfg, training_set, [part.tolist() for part in rows.split(cfg.TEST.IMS_PER_BATCH)])
    images = torch.cat([batch["images"][batch["readable"].bool()] for batch in batches]).float()
    if len(images) < 2:
        raise InputError("int8 needs at least two training images that can be read, for the ranges of activations")
    return images


def exported_files(cfg: CfgNode) -> tuple[str, ...]:
    """The names of the files that an encoder is exported to."""
    return (ONNX_FILE,) if is_timm(cfg) else (ONNX_FILE, WEIGHTS_FILE, CONFIG_FILE)


def plain_config(cfg: CfgNode, folder: Path) -> CfgNode:
    """fast-reid's own keys, without this plugin's, as in ``cfg``, for its Baseline with the weights in ``folder``."""
    plain, default = get_cfg(), get_cfg()
    _take_over(plain, cfg)
    plain.MODEL.META_ARCHITECTURE = "Baseline"
    plain.MODEL.LOSSES = default.MODEL.LOSSES
    plain.MODEL.HEADS.NUM_CLASSES = 0  # no classifier; fast-reid sets the number of identities for training
    if cfg.MODEL.HEADS.NAME == "ProxyHead":
        plain.MODEL.HEADS.NAME = "EmbeddingHead"
    plain.MODEL.BACKBONE.PRETRAIN, plain.MODEL.BACKBONE.PRETRAIN_PATH = False, ""
    plain.MODEL.WEIGHTS = str((folder / WEIGHTS_FILE).resolve())
    plain.OUTPUT_DIR = default.OUTPUT_DIR  # not the run's, whose log and config would be overwritten
    return plain


def _take_over(plain: CfgNode, cfg: CfgNode) -> None:
    for key, value in plain.items():
        if isinstance(value, CfgNode):
            _take_over(value, cfg[key])
        else:
            plain[key] = cfg[key]


def _plain_model(plain_cfg: CfgNode, model: MomentumReID) -> nn.Module:
    """Baseline with the weights of the encoder under test, on the CPU."""
    plain_cfg = plain_cfg.clone()
    plain_cfg.MODEL.DEVICE = "cpu"
    plain = build_model(plain_cfg)
    prefix = "momentum." if model.test_encoder == "momentum" else ""
    state = {name.removeprefix(prefix): value for name, value in model.state_dict().items() if name.startswith(prefix)}
    # Only the empty classifier is missing; if anything else were, the comparison of the features would show it.
    plain.load_state_dict(state, strict=False)
    return plain
