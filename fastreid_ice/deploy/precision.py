"""ONNX graphs that compute in float16 or int8, made by onnxruntime's own tools."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from .graph import optional

PRECISIONS = ("float32", "float16", "int8")
BATCH = 32  # images at a time


def to_float16(graph: bytes) -> bytes:
    """The graph with weights and computations in float16. Input and output stay float32."""
    onnx, float16 = optional("onnx"), optional("onnxruntime.transformers.float16")
    model = onnx.load_from_string(graph)
    return float16.convert_float_to_float16(model, keep_io_types=True).SerializeToString()


def to_int8(graph: bytes, images: Tensor) -> bytes:
    """The graph with weights in int8, a scale for each channel, and activations in uint8.

    Input and output stay float32.

    Args:
        graph: in float32.
        images: (N, 3, H, W) typical input, from which the range of each activation is taken.
    """
    quantization = optional("onnxruntime.quantization")
    shapes = optional("onnxruntime.quantization.shape_inference")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(images.split(BATCH))

        def get_next(self) -> dict | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    with tempfile.TemporaryDirectory() as scratch, _quiet():
        before, fused, after = (str(Path(scratch, name)) for name in ("before.onnx", "fused.onnx", "after.onnx"))
        Path(before).write_bytes(graph)
        shapes.quant_pre_process(before, fused, skip_symbolic_shape=True)  # fuses layers; symbols would need sympy
        quantization.quantize_static(
            fused,
            after,
            Reader(),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return Path(after).read_bytes()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice that onnxruntime writes to the root logger while it quantises."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
