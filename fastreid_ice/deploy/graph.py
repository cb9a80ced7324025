"""The ONNX graph of an encoder: traced, run by onnxruntime, and compared with the encoder."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.data.transforms import build_transforms
from PIL import Image
from torch import Tensor, nn

from ..errors import InputError

TOLERANCE = 1e-4
OPSET = 17  # fixed, so that the graph does not depend on torch's default
TRACED_BATCH, CHECKED_BATCHES = 2, (1, 5)
BATCH = "batch"  # the name of the free dimension; boxmot fixes one of this name where a device needs that


class UnitFeatures(nn.Module):
    """A fast-reid model in evaluation mode, with features (N, D) scaled to length 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()  # of the whole, as torch's exporter restores the mode of the whole

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) RGB images in [0, 255], which the model itself normalises."""
        return F.normalize(self.model(images))


def example_images(cfg: CfgNode) -> list[Tensor]:
    """Batches (B, 3, H, W) of noise in [0, 255], of the size that the test transform gives."""
    size = build_transforms(cfg, is_train=False)(Image.new("RGB", (128, 256))).shape
    generators = {batch: torch.Generator().manual_seed(batch) for batch in CHECKED_BATCHES}
    return [255 * torch.rand(batch, *size, generator=generator) for batch, generator in generators.items()]


def checked_graph(
    encoder: nn.Module, examples: list[Tensor], expected: list[Tensor], network: str
) -> tuple[bytes, float]:
    """The ONNX graph of ``encoder``, after a comparison of its features with those that are expected.

    Args:
        encoder: on the CPU, (N, 3, H, W) -> (N, D) of length 1.
        examples: batches of such input, of several sizes.
        expected: the features of each batch.
        network: its name, for errors.

    Returns:
        The graph, and the largest difference found between a coordinate of its features and of those expected.

    Raises:
        InputError: onnx or onnxruntime is not installed, ``encoder`` has no graph, or its features differ.
    """
    onnx, _ = optional("onnx"), optional("onnxruntime")
    try:
        graph = trace(encoder, examples[0][:1].expand(TRACED_BATCH, -1, -1, -1))
        onnx.checker.check_model(graph, full_check=True)
        found = run(graph, examples)
    except Exception as error:  # the errors of onnx, onnxruntime and torch's exporter share no other base class
        raise InputError(
            f"MODEL.BACKBONE.NAME {network} has no ONNX graph for batches of any size: "
            f"{str(error).strip().partition(chr(10))[0]}"
        ) from error
    return graph, compare("the ONNX graph", expected, found)


def trace(encoder: nn.Module, images: Tensor) -> bytes:
    """The ONNX graph of ``encoder`` for any number of images of this size.

    Uses the tracing exporter (``dynamo=False``), which needs only torch and exists in torch 2.4 to 2.12. The newer one
    needs onnxscript, and changes from version to version.
    """
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        # Warnings that there is a newer exporter, and that Python values become constants of the graph. Whether one of
        # these depends on the number of images is tested by running the graph on other numbers.
        warnings.simplefilter("ignore")
        path = Path(scratch, "encoder.onnx")
        torch.onnx.export(
            encoder,
            (images,),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["features"],
            dynamic_axes={"images": {0: BATCH}, "features": {0: BATCH}},
        )
        return path.read_bytes()


def run(graph: bytes, batches: Iterable[Tensor]) -> list[Tensor]:
    """The output of the graph for each batch."""
    onnxruntime = optional("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it also raises the errors that it would log
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(session.run(None, {"images": images.numpy()})[0]) for images in batches]


def compare(what: str, expected: list[Tensor], found: list[Tensor]) -> float:
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


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Writes all files under temporary names before the first is put in place.

    Raises:
        InputError: ``folder`` cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as scratch:
            for name, content in files.items():
                Path(scratch, name).write_bytes(content)
            for name in files:
                Path(scratch, name).replace(folder / name)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error


def optional(name: str) -> ModuleType:
    """The module ``name``, if what the export needs is installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed, but the export needs it: run `pip install onnx onnxruntime`"
        ) from error
