"""Writes OUTPUT_DIR/report.html, one page about a run: curves, clusters to look at, and a search over all images.

fastreid-ice report --run logs/ice_folder

Training writes the page at its end; this command writes it again, or for a run that is not finished. The page shows the
last clustering, that of OUTPUT_DIR/labels.csv. It contains all of its pictures and needs no network.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from ..config import Run
from ..errors import InputError
from ..reporting import write_report
from . import add_run, command_parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_parser("report", __doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    add_run(source, "its config, scalars and labels")
    source.add_argument("folder", metavar="OUTPUT_DIR", type=Path, nargs="?", help="the same folder, without --run")
    args = parser.parse_args(arguments)
    logging.getLogger("fastreid").setLevel(logging.WARNING)
    try:
        print(write_report(Run.read(args.run or args.folder)))
    except InputError as error:
        sys.exit(f"error: {error}")
