"""Shows the clusters of a run in the browser, where a person corrects them: questions in order of doubt, and clusters.

fastreid-ice review logs/ice_folder
fastreid-ice review logs/ice_folder --port 0

Every answer is written at once to OUTPUT_DIR/corrections.csv, which `fastreid-ice train`, `recluster` and `label` use:
the key CORRECTIONS. Start it again to go on. Features are extracted the first time, with the encoder and the weights of
the run, and kept in OUTPUT_DIR/review.index. The server answers only to this machine. Ctrl-C ends it, and the commands
that use the answers are printed. It needs the packages starlette and uvicorn.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from ..deploy.index import as_text
from ..errors import InputError
from . import command_parser, explaining_server

HOST = "127.0.0.1"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_parser("review", __doc__)
    parser.add_argument("run", metavar="OUTPUT_DIR", type=Path, help="the folder of a run that has clustered")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0 is any free one")
    args = parser.parse_args(arguments)
    try:
        run(args)
    except InputError as error:
        sys.exit(f"error: {as_text(str(error))}")


def run(args: argparse.Namespace) -> None:
    """Serves until Ctrl-C. Raises InputError if the arguments cannot work."""
    with explaining_server():
        from ..deploy.review_server import ReviewApp, next_commands
        from ..deploy.web import listen, serve
    from ..deploy.review import Review

    logging.getLogger("fastreid").setLevel(logging.WARNING)
    with listen(HOST, args.port) as listening:
        review = Review(args.run)
        app = ReviewApp(review).app(HOST, HOST)
        port = listening.getsockname()[1]
        images = f"{len(review.clustering.paths):,} images in {len(review.numbers):,} clusters"
        print(f"http://{HOST}:{port}/ shows {images} of {as_text(str(args.run))}; Ctrl-C ends it", flush=True)
        serve(app, listening)
    answers = review.answers
    print(f"{len(answers.rows):,} answers in {as_text(str(answers.path))}")
    if answers.rows:
        print("Next:", *map(as_text, next_commands(review)), sep="\n  ")
