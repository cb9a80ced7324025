"""Searches any folder of images with a trained encoder: an index of their features, and queries against it.

fastreid-ice search index --run logs/ice_folder --images path/to/crops --index crops.index
fastreid-ice search query --index crops.index query.jpg --top-k 20 --other-cameras --page found.html

The first command extracts the features of all images, and keeps them beside paths and cameras in the folder
crops.index. Run again, it extracts only images that are new or have changed, and drops those that no longer exist. The
second ranks them by their similarity to each query. `fastreid-ice search index --help` and `fastreid-ice search query
--help` list all options.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from fastreid.utils.logger import setup_logger

from ..deploy.encoder import Encoder
from ..deploy.index import as_text, update_index
from ..deploy.search import CANDIDATES, Gallery, read_threshold
from ..engine.log import log_any_name
from ..errors import InputError
from ..reporting.matches import QueryMatches, matches_table, write_matches_json, write_matches_page
from . import command_parser

INDEX = """Makes the folder INDEX the index of all images of a folder or of a file of labels.

fastreid-ice search index --run logs/ice_folder --images path/to/crops --index crops.index
fastreid-ice search index --run logs/ice_folder --images logs/ice_folder/labels.csv --index crops.index

The run's own config and weights fix image size, normalisation and encoder (TEST.ENCODER). Cameras follow
DATASETS.FOLDER.CAMERAS and METADATA of the run, or of KEY VALUE; a file of labels names them itself. Images whose path,
size and time of change are as before are not read again. The index is replaced in one step: a command that is killed
leaves the earlier one. It holds features.parquet with the columns path, camera and vector, which other programs read.
"""
QUERY = """Ranks the images of an index by their similarity to each query.

fastreid-ice search query --index crops.index query.jpg
fastreid-ice search query --index crops.index a.jpg b.jpg --other-cameras --threshold 90% --json found.json

An image that is in the index itself is not its own result. The similarity is the cosine of the features; the distance,
by which results are ranked, is 1 - cosine, or with --rerank the re-ranked distance.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    try:
        args.run_it(args)
    except InputError as error:
        sys.exit(f"error: {as_text(str(error))}")


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("search", __doc__)
    actions = parser.add_subparsers(metavar="index | query", required=True)
    raw = {"formatter_class": argparse.RawDescriptionHelpFormatter}

    index = actions.add_parser("index", help="make an index, or bring it up to date", description=INDEX, **raw)
    index.add_argument("--run", metavar="OUTPUT_DIR", type=Path, required=True, help="the folder of the trained run")
    index.add_argument(
        "--images", metavar="SOURCE", type=Path, required=True, help="a folder of images, or a CSV file of labels"
    )
    index.add_argument("--index", metavar="INDEX", type=Path, required=True, help="the folder; created if missing")
    index.add_argument(
        "--weights",
        metavar="FILE",
        type=Path,
        help="the checkpoint; default: that which the run names as the one to use",
    )
    index.add_argument("options", nargs=argparse.REMAINDER, help="config keys and values, as in training")
    index.set_defaults(run_it=run_index)

    query = actions.add_parser("query", help="rank the images of an index", description=QUERY, **raw)
    query.add_argument("queries", metavar="IMAGE", nargs="+", help="one or many images to search for")
    query.add_argument("--index", metavar="INDEX", type=Path, required=True, help="the folder of an index")
    query.add_argument("--top-k", metavar="K", type=int, default=10, help="results per query, at most; default: 10")
    query.add_argument(
        "--other-cameras",
        action="store_true",
        help="only results in other known cameras than the query's",
    )
    query.add_argument(
        "--camera",
        metavar="NAME",
        help="the camera of the queries; default: that in the index, or what DATASETS.FOLDER finds in their file names",
    )
    query.add_argument(
        "--threshold",
        metavar="COSINE",
        help="least cosine of a result; or a share such as 90%%: the cosine that 90%% of the pairs in one "
        "cluster of the run reach, an estimate without truth",
    )
    add_comparison(query)
    query.add_argument("--json", metavar="FILE", type=Path, help="also write the results as JSON")
    query.add_argument("--page", metavar="FILE", type=Path, help="also write them as an HTML page with all pictures")
    query.set_defaults(run_it=run_query)
    return parser


def add_comparison(parser: argparse.ArgumentParser) -> None:
    """Adds the options about how features are compared."""
    parser.add_argument(
        "--camera-norm",
        action="store_true",
        help="compare features that are standardised within each camera: for cameras that differ in light and colours",
    )
    parser.add_argument(
        "--rerank",
        action="store_true",
        help=f"re-rank the {CANDIDATES} nearest images of each query by mutual neighbours, with the run's TEST.RERANK",
    )


def run_index(args: argparse.Namespace) -> None:
    """Raises InputError if the arguments cannot work; the index is unchanged then."""
    encoder = Encoder(args.run, args.options, weights=args.weights)
    setup_logger()
    log_any_name()
    done = update_index(args.index, encoder, args.images)
    if done.afresh:
        print("The encoder is another one than that of the earlier index: all images were extracted again.")
    for paths, reason in ((done.gone, "do not exist"), (done.unreadable, "cannot be read")):
        if paths:
            print(f"{len(paths)} images {reason} and are left out, the first: {as_text(paths[0])}")
    print(
        f"{len(done.index.paths)} images: {done.added} added, {done.changed} changed, {done.kept} kept, {done.dropped} "
        f"dropped: {as_text(str(args.index))}"
    )


def run_query(args: argparse.Namespace) -> None:
    """Raises InputError if the arguments cannot work; nothing is written then."""
    for flag, file in (("--json", args.json), ("--page", args.page)):
        if file is not None and (not file.absolute().parent.is_dir() or file.is_dir()):
            raise InputError(f"{flag} {file}: its folder is missing, or it is a folder itself")
    logging.getLogger("fastreid").setLevel(logging.WARNING)
    gallery = Gallery(args.index, camera_norm=args.camera_norm)
    threshold, words = read_threshold(args.threshold, gallery, other_cameras=args.other_cameras)
    encoder = gallery.encoder()
    if args.camera is not None:
        cameras = [as_text(args.camera)] * len(args.queries)
    else:
        cameras = gallery.cameras_of(args.queries, encoder.cfg.DATASETS.FOLDER)
    if args.other_cameras and "" in cameras:
        raise InputError(
            f"--other-cameras: the camera of {args.queries[cameras.index('')]} is not known; name it by --camera"
        )
    rankings = gallery.search(
        gallery.encode(args.queries, encoder),
        top_k=args.top_k,
        own=gallery.rows_of(args.queries),
        cameras=cameras,
        other_cameras=args.other_cameras,
        threshold=threshold,
        rerank=encoder.cfg.TEST.RERANK if args.rerank else None,
        device=encoder.cfg.MODEL.DEVICE,
    )
    index = gallery.index
    found = [
        QueryMatches(path, camera, gallery.matches(ranking))
        for path, camera, ranking in zip(args.queries, cameras, rankings, strict=True)
    ]
    print(matches_table(found))
    if words:
        print(f"\n{words}")
    if args.json:
        search = {
            "index": str(args.index.absolute()),
            "images": len(index.paths),
            "run": index.origin.run,
            "weights": index.origin.weights,
            "fingerprint": index.origin.fingerprint,
            "top_k": args.top_k,
            "other_cameras": args.other_cameras,
            "threshold": None if args.threshold is None else threshold,
            "camera_norm": args.camera_norm,
            "reranked": args.rerank,
        }
        write_matches_json(args.json, found, search=search)
        print(as_text(str(args.json)))
    if args.page:
        sentences = [
            f"{len(index.paths):,} images in {args.index.absolute()}, ranked by "
            + ("re-ranked distance." if args.rerank else "1 − cosine of their features to the query's."),
            *(["Features are standardised within each camera."] if args.camera_norm else []),
            *(["Only images in other cameras than the query's."] if args.other_cameras else []),
            *([words] if words else []),
        ]
        write_matches_page(args.page, found, words=sentences)
        print(as_text(str(args.page)))
