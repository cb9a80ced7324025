"""Searches an index of images in the browser: drop a picture, see the images nearest to it, click one to search on.

fastreid-ice serve --index crops.index
fastreid-ice serve --index crops.index --port 0 --camera-norm

`fastreid-ice search index` makes the index. The page offers the number of results, other cameras only and a threshold.
The server answers only to this machine, unless --host names another of its addresses; it writes nothing. Ctrl-C ends
it. It needs the packages starlette and uvicorn.
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from ..deploy.index import as_text
from ..deploy.search import Gallery
from ..errors import InputError
from . import command_parser, explaining_server
from .search import add_comparison


def main(arguments: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    try:
        run(args)
    except InputError as error:
        sys.exit(f"error: {as_text(str(error))}")


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("serve", __doc__)
    parser.add_argument("--index", metavar="INDEX", type=Path, required=True, help="the folder of an index")
    parser.add_argument(
        "--host", default="127.0.0.1", help="where to listen; default: 127.0.0.1, which only this machine reaches"
    )
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0 is any free one")
    add_comparison(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Serves until Ctrl-C. Raises InputError if the arguments cannot work."""
    with explaining_server():
        from ..deploy.server import SearchApp
        from ..deploy.web import listen, serve
    logging.getLogger("fastreid").setLevel(logging.WARNING)
    gallery = Gallery(args.index, camera_norm=args.camera_norm)
    encoder = gallery.encoder()
    with listen(args.host, args.port) as listening:
        address, port = listening.getsockname()[:2]
        search = SearchApp(gallery, encoder, rerank=encoder.cfg.TEST.RERANK if args.rerank else None)
        if not ipaddress.ip_address(address).is_loopback:
            print("warning: everyone who reaches this address sees all images of the index", file=sys.stderr)
        shown = f"[{args.host}]" if ":" in args.host else args.host
        images = f"{len(gallery.index.paths):,} images of {as_text(str(args.index))}"
        print(f"http://{shown}:{port}/ searches {images}; Ctrl-C ends it", flush=True)
        serve(search.app(args.host, address), listening)
