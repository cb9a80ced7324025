"""The sub-commands of ``fastreid-ice``, one module each with a ``main`` that parses arguments and prints results."""

from __future__ import annotations

import argparse


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """The parser of one sub-command; its help shows the description with its line breaks."""
    return argparse.ArgumentParser(
        f"fastreid-ice {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
