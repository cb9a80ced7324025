"""What becomes of a trained encoder: an ONNX file, a checkpoint of plain fast-reid, an index of images to search."""

from .encoder import Encoder
from .export import export_encoder, export_onnx
from .index import ImageIndex, Origin, Update, update_index
from .search import Gallery, Ranking

__all__ = [
    "Encoder",
    "Gallery",
    "ImageIndex",
    "Origin",
    "Ranking",
    "Update",
    "export_encoder",
    "export_onnx",
    "update_index",
]
