"""The sub-commands of ``fastreid-ice``, one module each with a ``main`` that parses arguments and prints results."""

from __future__ import annotations

import argparse
from pathlib import Path


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """The parser of one sub-command; its help shows the description with its line breaks."""
    return argparse.ArgumentParser(
        f"fastreid-ice {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_run(parser: argparse._ActionsContainer, uses: str) -> None:
    """Adds ``--run``, the folder of a run; ``uses`` says what of it the command uses."""
    parser.add_argument("--run", metavar="OUTPUT_DIR", type=Path, help=f"the folder of a run: {uses}")
