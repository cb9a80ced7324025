"""The sub-commands of ``fastreid-ice``, one module each with a ``main``: arguments in, words out."""

from __future__ import annotations

import argparse


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """The parser of one sub-command, whose help shows the description as it is written."""
    return argparse.ArgumentParser(
        f"fastreid-ice {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
