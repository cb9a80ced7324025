"""Writes pseudo labels in a form that people or other programs read.

fastreid-ice label --run logs/ice_folder --format folder --output clusters
fastreid-ice label --run logs/ice_folder --corrections logs/ice_folder/corrections.csv --output corrected.csv --write
fastreid-ice label labels.csv --format coco --output labels.json --write
fastreid-ice label --run logs/ice_folder --format mot --tracks tracker --output identities --write

The labels are those of a run's last clustering (its OUTPUT_DIR), or of a file that `fastreid-ice recluster` wrote.
Without --write nothing is created: the command prints what it would create. Images that no longer exist are left out.

--corrections names a file of what a person has said about the images (docs/corrections.md), which the labels then keep:
clusters are joined, images leave them, and all clusters get new numbers. Features are not known here, so a cluster of
two people loses only the images that the file names; `fastreid-ice recluster` divides it.

csv       a file like labels.csv, sorted by cluster and by distance to its centroid
folder    a folder of symbolic links with one sub-folder for each cluster, cluster_0000, cluster_0001 and so on with the
          numbers of the CSV file, and one for noise: cam<camera>_<distance to the centroid>_<file name>. The images
          stay as and where they are. Do not put it inside the folder of the images: a later run would train on the
          links as well
coco      a COCO file: each crop is a box of category "person", with its cluster as track_id and as attribute identity
fiftyone  a folder with a FiftyOneImageClassificationDataset, whose images stay where they are
mot       a folder with the tracker's files in --tracks, CAMERA.txt in MOTChallenge's form, in which one identity per
          person across cameras replaces the tracker's number. Needs the run, whose DATASETS.FOLDER.METADATA finds
          camera and track in the names of the crops; the track is the tracker's number
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import sparse

from ..config import Run
from ..core import enforce_constraints
from ..data import build_dataset, facts_of, read_corrections
from ..errors import InputError
from ..files import new_folder, replacing
from ..progress import progress
from ..reporting import PseudoLabels
from ..reporting.exchange import Track, as_coco, as_fiftyone, identify_tracks, read_tracks, track_of
from ..reporting.links import make_links, plan_links
from . import add_run, command_parser

SHOWN = 5


class Plan(NamedTuple):
    """What would be written, in a sentence; further lines to show before; and what writes it."""

    sentence: str
    write: Callable[[Path], None]
    preview: Sequence[str] = ()


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
    return by_cluster(PseudoLabels.read(source))


def by_cluster(found: PseudoLabels) -> PseudoLabels:
    return found[np.lexsort((found.distances, found.labels, found.labels < 0))]


def corrected(labels: PseudoLabels, path: Path) -> tuple[PseudoLabels, str]:
    """Labels that keep a file of corrections, and a sentence about what changed.

    Of two images in one cluster that are two people, the one further from the centroid leaves it. The distance to the
    centroid of a cluster that has changed is not known.

    Raises:
        InputError: the file cannot be read, does not fit the images, or contradicts itself.
    """
    said = read_corrections(str(path), labels.paths)
    before = np.full(len(labels.labels), -1)
    clustered = labels.labels >= 0
    before[clustered] = np.unique(labels.labels[clustered], return_inverse=True)[1]
    offsets = np.nan_to_num(labels.distances, nan=1.0)
    kept = enforce_constraints(before, _stars(before, offsets), said, offsets=offsets, min_size=2)
    pairs, pair, sizes = np.unique(np.stack((before, kept.labels), 1), axis=0, return_inverse=True, return_counts=True)
    # A cluster whose images are all together, alone, and in a cluster still.
    whole = [sizes == np.bincount(column + 1, weights=sizes)[column + 1] for column in pairs.T]
    same = whole[0] & whole[1] & (pairs[:, 0] >= 0) & (pairs[:, 1] >= 0) | (pairs == -1).all(1)
    unchanged = same[pair.ravel()]
    distances = np.where(unchanged, labels.distances, np.float32(np.nan))
    sentence = (
        f"{path}: {kept.joined} people were in several clusters or in noise, and are now in one; {kept.repaired} "
        f"clusters held two people; {int(said.nobody.sum())} images show nobody"
    )
    return by_cluster(PseudoLabels(labels.paths, labels.cameras, kept.labels, distances)), sentence


def _stars(labels: np.ndarray, distances: np.ndarray) -> sparse.csr_array:
    """(N, N) the distance of each image to the most central one of its cluster."""
    near = distances.clip(1e-6, 1)
    order = np.lexsort((near, labels))
    centres = order[np.unique(labels[order], return_index=True)[1]]
    centre = centres[np.unique(labels, return_inverse=True)[1]]
    rows = np.flatnonzero((labels >= 0) & (centre != np.arange(len(labels))))
    stars = sparse.csr_array((near[rows], (rows, centre[rows])), shape=(len(labels), len(labels)))
    return stars.maximum(stars.T)


def existing(labels: PseudoLabels) -> tuple[PseudoLabels, list[str]]:
    """The labels of images that exist, and the paths of the others.

    Raises:
        InputError: none exists.
    """
    here = np.array([os.path.isfile(path) for path in progress(labels.paths, "Looking for images")], bool)
    gone = [path for path, there in zip(labels.paths, here, strict=True) if not there]
    if gone and not here.any():
        raise InputError(
            f"none of the {len(gone)} images exists, the first: {gone[0]!r}; paths that do not begin with / are "
            "relative to the current folder"
        )
    return labels[np.flatnonzero(here)], gone


def plan_csv(labels: PseudoLabels, args: argparse.Namespace) -> Plan:
    return Plan(f"{len(labels.paths)} images", labels.write)


def plan_folder(labels: PseudoLabels, args: argparse.Namespace) -> Plan:
    links = plan_links(labels)
    clusters = len(np.unique(labels.labels[labels.labels >= 0]))
    noise = " and one of noise" if (labels.labels < 0).any() else ""
    preview = [f"  {name} -> {target}" for name, target in list(links.items())[:SHOWN]]
    return Plan(
        f"{clusters} folders of clusters{noise}, {len(links)} links",
        lambda path: make_links(links, path),
        [*preview, "  ..."] if len(links) > SHOWN else preview,
    )


def plan_coco(labels: PseudoLabels, args: argparse.Namespace) -> Plan:
    document = as_coco(labels)

    def write(path: Path) -> None:
        with replacing(str(path), "w", encoding="utf-8", errors="surrogateescape") as file:
            json.dump(document, file, ensure_ascii=False)

    return Plan(f"{len(labels.paths)} images, with file names relative to {document['info']['root']}", write)


def plan_fiftyone(labels: PseudoLabels, args: argparse.Namespace) -> Plan:
    document = as_fiftyone(labels)

    def write(path: Path) -> None:
        with new_folder(path) as folder:
            (folder / "data").mkdir()  # FiftyOne wants it, although the paths of the images are absolute
            text = json.dumps(document, ensure_ascii=False)
            (folder / "labels.json").write_text(text, encoding="utf-8", errors="surrogateescape")

    return Plan(
        f"{len(labels.paths)} images of {len(document['classes'])} classes, for FiftyOneImageClassificationDataset",
        write,
    )


def plan_mot(labels: PseudoLabels, args: argparse.Namespace) -> Plan:
    cameras = read_tracks(args.tracks)
    frames: dict[Track, list[int]] = {}
    for camera, rows in cameras.items():
        for fields in rows:
            frames.setdefault(track_of(camera, fields), []).append(int(float(fields[0])))
    tracks = tracks_of(args.run, labels.paths)
    of_crops = {track for track in tracks if track is not None}
    if not of_crops & frames.keys():
        example = " and ".join(
            f"{where} have track {track!r} of camera {camera!r}"
            for where, (camera, track) in (("crops", min(of_crops, default=("", ""))), ("the files", min(frames)))
        )
        raise InputError(f"--tracks {args.tracks}: no crop is of a track in these files; {example}")
    found = identify_tracks(tracks, labels.labels, frames)

    def write(path: Path) -> None:
        with new_folder(path) as folder:
            for camera, rows in cameras.items():
                with (folder / f"{camera}.txt").open("w", newline="", encoding="utf-8") as file:
                    renamed = ([row[0], found.of_track[track_of(camera, row)], *row[2:]] for row in rows)
                    csv.writer(file, lineterminator="\n").writerows(renamed)

    people = len(set(found.of_track.values()))
    return Plan(
        f"{len(cameras)} cameras, {len(frames)} tracks of {people} identities: {found.named} tracks have that of a "
        f"cluster, {found.unknown} are in none, {found.refused} share a frame with another track of their cluster",
        write,
    )


def tracks_of(run: Path, paths: Sequence[str]) -> list[Track | None]:
    """Camera and track of each image, as the run's config finds them; None where it does not.

    Raises:
        InputError: the images of the run are no longer there, or its config does not say how to find tracks.
    """
    cfg = Run.read(run).stages[0].cfg
    found: dict[str, Track] = {}
    for name in cfg.DATASETS.NAMES:
        dataset = build_dataset(cfg, name)
        listing = [path for path, *_ in dataset.train]
        for path, facts in zip(listing, facts_of(dataset, listing), strict=True):
            if facts.camera is not None and facts.track is not None:
                found[os.path.abspath(path)] = (facts.camera, facts.track.lstrip("0") or "0")
    if not found:
        raise InputError(
            f"--format mot: the config of {run} finds no camera and track of an image; train with "
            "DATASETS.FOLDER.METADATA, or add it to its config.yaml"
        )
    return [found.get(os.path.abspath(path)) for path in paths]


FORMATS = {"csv": plan_csv, "folder": plan_folder, "coco": plan_coco, "fiftyone": plan_fiftyone, "mot": plan_mot}


def check_output(output: Path) -> None:
    """Raises InputError if something would be overwritten or cannot be created."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(f"--output {output} exists; name another, or remove it first")
    if not output.absolute().parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.absolute().parent}")


def run(args: argparse.Namespace) -> None:
    """Raises InputError if the arguments cannot work; nothing is written then."""
    labels = read_labels(args.run or args.source)
    check_output(args.output)
    lines = []
    if args.corrections:
        labels, sentence = corrected(labels, args.corrections)
        lines.append(sentence)
    labels, gone = existing(labels)
    plan = FORMATS[args.format](labels, args)
    if args.write:
        try:
            plan.write(args.output)
        except OSError as error:
            raise InputError(f"--output {args.output}: {error.strerror}") from error
    lines.append(f"{'Wrote' if args.write else 'Would write'} {args.output}: {plan.sentence}")
    if gone:
        lines.append(f"{len(gone)} images no longer exist and are left out, the first: {gone[0]}")
    if not args.write:
        lines += [*plan.preview, "Nothing was created; --write creates it."]
    print("\n".join(lines).encode(errors="replace").decode())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_parser("label", __doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    add_run(source, "the labels of its last clustering")
    source.add_argument(
        "source", metavar="LABELS", type=Path, nargs="?", help="a CSV file of labels, or the folder of a run"
    )
    parser.add_argument("--format", choices=FORMATS, default="csv", help="see above; default: csv")
    parser.add_argument(
        "--corrections", metavar="FILE", type=Path, help="a person's corrections, which the labels then keep"
    )
    parser.add_argument("--output", metavar="PATH", type=Path, required=True, help="the file or folder to write")
    parser.add_argument("--tracks", metavar="FOLDER", type=Path, help="of a tracker's files, for mot")
    parser.add_argument("--write", action="store_true", help="create it; the default is to print what would be done")
    args = parser.parse_args(arguments)
    if args.source is not None and args.source.is_dir():
        args.run = args.source
    if args.format == "mot" and not (args.run and args.tracks):
        parser.error("--format mot needs --run OUTPUT_DIR and --tracks FOLDER")
    if args.tracks and args.format != "mot":
        parser.error("--tracks is for --format mot")
    try:
        run(args)
    except InputError as error:
        sys.exit(f"error: {error}")
