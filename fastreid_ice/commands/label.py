"""Writes pseudo labels: as a CSV file sorted by cluster, and as a folder of links to look through.

fastreid-ice label --run logs/ice_folder --links clusters
fastreid-ice label labels.csv --links clusters --output by_cluster.csv --write

The labels are those of a run's last clustering (its OUTPUT_DIR), or of a file that `fastreid-ice recluster` wrote.
Without --write nothing is created: the command prints what it would create.

The folder has one sub-folder for each cluster, cluster_0000, cluster_0001 and so on with the numbers of the CSV file,
and one for noise. They contain symbolic links, cam<camera>_<distance to the centroid>_<file name>, which sort by camera
and then by distance. The images stay as and where they are. Do not put the folder inside that of the images: a later
run would train on the links as well.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config import Run
from ..errors import InputError
from ..progress import progress
from ..reporting import PseudoLabels
from . import add_run, command_parser

LONGEST = 255  # bytes of a file name
SHOWN = 5


@dataclass(frozen=True)
class Links:
    """Link names, relative to the folder of the links, with their targets; and the images that no longer exist."""

    targets: dict[str, str]
    gone: list[str]


def read_labels(source: Path) -> PseudoLabels:
    """The labels in a CSV file, or those of a run's last clustering, by cluster and distance, noise last.

    Raises:
        InputError: there are no labels, or they cannot be read.
    """
    if source.is_dir():
        path = Run.read(source).labels
        if path is None:
            raise InputError(f"{source} holds no labels.csv: this run has not clustered yet")
        source = path
    found = PseudoLabels.read(source)
    order = np.lexsort((found.distances, found.labels, found.labels < 0))
    return PseudoLabels(
        [found.paths[row] for row in order],
        [found.cameras[row] for row in order],
        found.labels[order],
        found.distances[order],
    )


def plan_links(clustering: PseudoLabels) -> Links:
    """The links to create; an image that no longer exists gets none."""
    targets: dict[str, str] = {}
    gone = []
    copies: Counter[str] = Counter()
    digits = max((len(camera) for camera in clustering.cameras if camera.isdecimal()), default=0)
    width = max(4, len(str(clustering.labels.max(initial=0))))
    paths = progress(clustering.paths, "Looking for images")
    for path, camera, label, distance in zip(
        paths, clustering.cameras, clustering.labels, clustering.distances, strict=True
    ):
        if not os.path.isfile(path):
            gone.append(path)
            continue
        folder = "noise" if label < 0 else f"cluster_{label:0{width}d}"
        place = camera.zfill(digits) if camera.isdecimal() else re.sub(r"[^-.\w]", "-", camera)
        front = f"cam{place}_" if camera else ""
        front += "" if np.isnan(distance) else f"{distance:.4f}_"
        stem, suffix = os.path.splitext(os.path.basename(path))
        wanted = name = f"{folder}/{_shortened(front + stem, suffix)}"
        while name in targets:
            copies[wanted] += 1
            name = f"{folder}/{_shortened(front + stem, f'_{copies[wanted] + 1}{suffix}')}"
        targets[name] = os.path.abspath(path)
    if clustering.paths and not targets:
        raise InputError(
            f"none of the {len(gone)} images exists, the first: {gone[0]!r}; paths that do not begin with / are "
            "relative to the current folder"
        )
    return Links(targets, gone)


def _shortened(stem: str, end: str) -> str:
    """``stem + end``, with the stem cut to the length that a file name can have."""
    while len(os.fsencode(stem + end)) > LONGEST:
        stem = stem[:-1]
    return stem + end


def check_targets(links: Path | None, output: Path | None) -> None:
    """Raises InputError if something would be overwritten or cannot be created."""
    if links is not None and links.exists() and not (links.is_dir() and not any(links.iterdir())):
        raise InputError(f"--links {links} exists and is not empty; name another folder, or remove it first")
    if output is not None and output.exists():
        raise InputError(f"--output {output} exists; name another file, or remove it first")
    for flag, path in (("--links", links), ("--output", output)):
        if path is not None and not path.absolute().parent.is_dir():
            raise InputError(f"{flag} {path}: there is no folder {path.absolute().parent}")


def make_links(links: Links, folder: Path) -> None:
    """Creates the links in a temporary folder next to ``folder``, and renames it when it is complete.

    Raises:
        InputError: they cannot be created, as on a file system without links; nothing is left of them.
    """
    folder = folder.absolute()
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        scratch.mkdir()
        for name, target in progress(links.targets.items(), "Making links"):
            (scratch / name).parent.mkdir(exist_ok=True)
            (scratch / name).symlink_to(target)
        scratch.replace(folder)
    except OSError as error:
        raise InputError(f"--links {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # the links, not their targets


def describe(links: Links, folder: Path, *, done: bool) -> str:
    folders = {name.partition("/")[0] for name in links.targets}
    clusters = len(folders - {"noise"})
    lines = [
        f"{'Made' if done else 'Would make'} {folder}: {clusters} folders of clusters"
        f"{' and one of noise' if 'noise' in folders else ''}, {len(links.targets)} links"
    ]
    if links.gone:
        lines.append(f"{len(links.gone)} images no longer exist and are left out, the first: {links.gone[0]}")
    if not done:
        lines += [f"  {name} -> {target}" for name, target in list(links.targets.items())[:SHOWN]]
        lines += ["  ..."] if len(links.targets) > SHOWN else []
    return "\n".join(lines)


def run(args: argparse.Namespace) -> None:
    """Raises InputError if the arguments cannot work; nothing is written then."""
    clustering = read_labels(args.run or args.source)
    check_targets(args.links, args.output)
    links = plan_links(clustering) if args.links else None
    if args.output:
        if args.write:
            try:
                clustering.write(args.output)
            except OSError as error:
                raise InputError(f"--output {args.output}: {error.strerror}") from error
        print(f"{'Wrote' if args.write else 'Would write'} {args.output}: {len(clustering.paths)} images")
    if links:
        if args.write:
            make_links(links, args.links)
        print(describe(links, args.links, done=args.write).encode(errors="replace").decode())
    if not args.write:
        print("Nothing was created; --write creates it.")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_parser("label", __doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    add_run(source, "the labels of its last clustering")
    source.add_argument(
        "source", metavar="LABELS", type=Path, nargs="?", help="a CSV file of labels, or the folder of a run"
    )
    parser.add_argument("--links", metavar="FOLDER", type=Path, help="a folder of links, one sub-folder per cluster")
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="a CSV file of the labels, by cluster and then by distance"
    )
    parser.add_argument("--write", action="store_true", help="create them; the default is to print what would be done")
    args = parser.parse_args(arguments)
    if not (args.links or args.output):
        parser.error("nothing to do: name a folder with --links, a file with --output, or both")
    try:
        run(args)
    except InputError as error:
        sys.exit(f"error: {error}")
