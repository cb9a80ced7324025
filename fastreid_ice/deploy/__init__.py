"""What a trained encoder is exported to: an ONNX file, and a checkpoint of plain fast-reid."""

from .export import export_encoder

__all__ = ["export_encoder"]
