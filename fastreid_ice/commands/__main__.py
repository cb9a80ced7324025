"""The command ``fastreid-ice``: each sub-command is a module in this folder, with its own arguments.

A module is imported only when its command is given, so that the list of commands does not wait for torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from ..allocator import keep_freed_memory

COMMANDS = {
    "train": "train, resume or evaluate what a config describes",
    "recluster": "cluster features or a folder of images once, into labels.csv",
    "report": "write report.html about a run: curves, clusters to look at, a search over all images",
    "review": "correct the clusters of a run in the browser: questions in order of doubt, answered by keys",
    "label": "write pseudo labels as a CSV file, a folder of links, or for COCO, FiftyOne and MOT tools",
    "search": "search any folder of images with a trained encoder, by one or many queries",
    "serve": "search such a folder in the browser: drop a picture, click a result to search on",
    "export": "export a trained encoder to ONNX and to fast-reid without this plugin",
    "compare": "train several configs with the same seeds and compare them in a table and a chart",
    "bench": "measure reclustering, steps, input, evaluation and whole recipes, in a checkout",
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fastreid-ice",
        description="Person re-identification from unlabelled crops, on fast-reid.",
        epilog="fastreid-ice COMMAND --help describes each. A config that is not found in the current folder, such "
        "as configs/ice_demo.yml or ice_demo.yml, is taken from those that come with the package.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, sentence in COMMANDS.items():
        commands.add_parser(name, help=sentence)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    build_parser().parse_args([command])
    keep_freed_memory()
    import_module(f".{command}", __package__).main(rest)


if __name__ == "__main__":
    main()
