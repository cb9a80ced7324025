#!/usr/bin/env python
"""Writes OUTPUT_DIR/report.html, one page about a run: curves, clusters to look at, and a search over all images.

fastreid-ice report logs/ice_folder

Training writes the page at its end; this writes it anew, or for a run that is not done yet. It shows the last
clustering, that of OUTPUT_DIR/labels.csv. All pictures are inside the page, which needs no network.
"""

import argparse
import logging
import sys
from pathlib import Path

from fastreid_ice import InputError  # before fastreid, which cannot be imported without it

# isort: split
from fastreid_ice.engine import read_run
from fastreid_ice.reporting import write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="OUTPUT_DIR", type=Path, help="the folder of a run")
    args = parser.parse_args()
    logging.getLogger("fastreid").setLevel(logging.WARNING)
    try:
        print(write_report(read_run(args.folder), args.folder))
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
