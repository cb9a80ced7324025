"""Exports of a trained encoder: to an ONNX file, and to fast-reid without this plugin."""

from __future__ import annotations

import io
import tempfile
import warnings
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, get_cfg
from fastreid.data.transforms import build_transforms
from fastreid.modeling import build_model
from PIL import Image
from torch import Tensor, nn

from ..errors import InputError
from ..modeling import MomentumReID, is_timm

ONNX_FILE, WEIGHTS_FILE, CONFIG_FILE = "encoder.onnx", "fastreid.pth", "fastreid.yml"
TOLERANCE = 1e-4
OPSET = 17  # fixed, so that the graph does not depend on torch's default
TRACED_BATCH, CHECKED_BATCHES = 2, (1, 5)


class UnitFeatures(nn.Module):
    """A fast-reid model in evaluation mode, with features (N, D) scaled to length 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval()

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) RGB images in [0, 255], which the model itself normalises."""
        return F.normalize(self.model(images))


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
    onnx, onnxruntime = _import("onnx"), _import("onnxruntime")
    plain_cfg = plain_config(cfg, folder)
    known = WEIGHTS_FILE in exported_files(cfg)
    plain = UnitFeatures(_plain_model(plain_cfg, model) if known else model.cpu())
    examples = [_example_images(cfg, batch) for batch in CHECKED_BATCHES]
    with torch.no_grad():
        expected = [UnitFeatures(model.cpu())(images) for images in examples]
        difference = _compare("fast-reid's Baseline", expected, [plain(images) for images in examples])
    try:
        graph = _trace(plain, _example_images(cfg, TRACED_BATCH))
        onnx.checker.check_model(graph, full_check=True)
        found = _run(onnxruntime, graph, examples)
    except Exception as error:  # the errors of onnx, onnxruntime and torch's exporter share no other base class
        raise InputError(
            f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} has no ONNX graph for batches of any size: "
            f"{str(error).strip().partition(chr(10))[0]}"
        ) from error
    difference = max(difference, _compare("the ONNX graph", expected, found))
    files = {ONNX_FILE: graph}
    if known:
        weights = io.BytesIO()
        torch.save({"model": plain.model.state_dict()}, weights)
        files |= {WEIGHTS_FILE: weights.getvalue(), CONFIG_FILE: plain_cfg.dump().encode()}
    try:
        _write(folder, files)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error
    return difference


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


def _example_images(cfg: CfgNode, batch: int) -> Tensor:
    """(batch, 3, H, W) noise in [0, 255], of the size that the test transform gives."""
    size = build_transforms(cfg, is_train=False)(Image.new("RGB", (128, 256))).shape
    return 255 * torch.rand(batch, *size, generator=torch.Generator().manual_seed(batch))


def _trace(encoder: nn.Module, images: Tensor) -> bytes:
    """The ONNX graph of ``encoder`` for any number of images of this size.

    Uses the tracing exporter (``dynamo=False``), which needs only torch and exists in torch 2.4 to 2.12. The newer one
    needs onnxscript, and changes from version to version.
    """
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        # Warnings that there is a newer exporter, and that Python values become constants of the graph. Whether one of
        # these depends on the number of images is tested by running the graph on other numbers.
        warnings.simplefilter("ignore")
        path = Path(scratch, ONNX_FILE)
        torch.onnx.export(
            encoder,
            (images,),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["features"],
            dynamic_axes={"images": {0: "N"}, "features": {0: "N"}},
        )
        return path.read_bytes()


def _run(onnxruntime: ModuleType, graph: bytes, batches: list[Tensor]) -> list[Tensor]:
    """The output of the graph for each batch."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it also raises the errors that it would log
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(session.run(None, {"images": images.numpy()})[0]) for images in batches]


def _compare(what: str, expected: list[Tensor], found: list[Tensor]) -> float:
    """The largest difference, which must be at most ``TOLERANCE``."""
    if not all(features.isfinite().all() for features in expected):
        raise InputError("the features of the encoder are not finite: its checkpoint holds NaN or infinity")
    difference = float((torch.cat(expected) - torch.cat(found)).abs().max())
    if not difference <= TOLERANCE:  # so that NaN counts as too much
        raise InputError(
            f"{what} gives features that differ by {difference:.1e} from the model's, more than {TOLERANCE:.0e}: this "
            "network cannot be exported"
        )
    return difference


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Writes all files under temporary names before the first is put in place."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as scratch:
        for name, content in files.items():
            Path(scratch, name).write_bytes(content)
        for name in files:
            Path(scratch, name).replace(folder / name)
    for name in {WEIGHTS_FILE, CONFIG_FILE} - set(files):
        (folder / name).unlink(missing_ok=True)  # belongs to an earlier encoder


def _import(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed, but the export needs it: run `pip install onnx onnxruntime`"
        ) from error
