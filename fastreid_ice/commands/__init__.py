"""The sub-commands of ``fastreid-ice``, one module each with a ``main`` that parses arguments and prints results."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """The parser of one sub-command; its help shows the description with its line breaks."""
    return argparse.ArgumentParser(
        f"fastreid-ice {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_run(parser: argparse._ActionsContainer, uses: str) -> None:
    """Adds ``--run``, the folder of a run; ``uses`` says what of it the command uses."""
    parser.add_argument("--run", metavar="OUTPUT_DIR", type=Path, help=f"the folder of a run: {uses}")


@contextmanager
def explaining_server() -> Iterator[None]:
    """For imports of what needs starlette and uvicorn.

    Raises:
        InputError: one of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed, but the server needs it: run `pip install starlette uvicorn`"
        ) from error
