"""HTML pages that contain everything they show, and load nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..files import replacing
from .chart import readable

NAME_LENGTH = 100  # letters of a person's name that a page takes


def render(template: str, **values: object) -> str:
    """A page, rendered from a file in ``templates``, which escapes all values."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)


def write_text(path: Path, text: str) -> None:
    """Writes a page or another text completely or not at all.

    Raises:
        InputError: it cannot be written.
    """
    try:
        with replacing(str(path)) as file:
            file.write(text.encode())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def short_names(paths: Sequence[str]) -> tuple[list[str], str]:
    """The paths relative to their common folder, and this folder, as printable text."""
    if not paths:
        return [], ""
    common = common_folder(paths)
    return [short_name(path, common) for path in paths], readable(common)


def common_folder(paths: Sequence[str]) -> str:
    """The deepest folder that holds all paths, of which there is at least one."""
    return os.path.commonpath({os.path.dirname(path) for path in paths})


def short_name(path: str, folder: str) -> str:
    """A path relative to a folder, as printable text."""
    return readable(os.path.relpath(path, folder))
