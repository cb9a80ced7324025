"""Pictures that a server gets or gives: bounded in bytes, in pixels and in their formats."""

from __future__ import annotations

import io
import os

from fastreid.data.data_utils import read_image
from PIL import Image

from ..errors import InputError
from ..reporting.sheets import small_jpeg

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # what an index may hold
PIXELS = 30_000_000  # of a picture that is decoded, which takes some 10 bytes for each


def open_picture(data: bytes | bytearray) -> Image.Image:
    """A picture that somebody sent, with its header read and its pixels not yet.

    Raises:
        InputError: it is of another format, or has more than ``PIXELS``.
    """
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise InputError("this picture has far too many pixels") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"this is not a picture as {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from error
    if picture.width * picture.height > PIXELS:
        raise InputError(
            f"the picture has {picture.width} x {picture.height} pixels, more than {PIXELS / 1e6:.0f} million; make it "
            "smaller, or cut out the person"
        )
    return picture


def thumbnail_file(path: str) -> bytes | None:
    """A small JPEG of an image file; None if it is missing, cannot be read, or has more than ``PIXELS``."""
    if not os.path.isfile(path):  # opening a pipe would wait for its writer
        return None
    try:
        with Image.open(path, formats=FORMATS) as picture:
            return small_jpeg(read_image(picture)) if picture.width * picture.height <= PIXELS else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
