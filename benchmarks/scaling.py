"""How time and memory of a reclustering grow with the number of images, for each way to search neighbours."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable
from datetime import date
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from fastreid_ice.core import label_quality
from fastreid_ice.core.neighbors import METHODS
from fastreid_ice.reporting.chart import Point, draw_curves

from .measuring import Worker, check_least, draw_people, machine
from .recluster import K1, recluster

PER_PERSON, STRAYS = 30, 0.1
COLUMNS = {
    "images": ",d",
    "neighbors": "",
    "neighbors s": ",.2f",
    "Jaccard graph s": ",.2f",
    "DBSCAN s": ",.2f",
    "total s": ",.2f",
    "peak GiB": ",.2f",
    "beside the features GiB": ",.2f",
    "GPU GiB": ",.2f",
    "clusters": ",d",
    "noise": ".1%",
    "ARI": ".4f",
    "ARI to exact": ".4f",
    "measured": "",
}
# The columns by name, and the other settings under "machine", "device" and "dim".
Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sizes = [10_000, 30_000, 100_000, 300_000, 1_000_000]
    parser.add_argument("--images", type=int, nargs="+", default=sizes, help=f"default: {' '.join(map(str, sizes))}")
    parser.add_argument("--dim", type=int, default=256, help="dimensions of a feature; default: 256")
    parser.add_argument("--neighbors", nargs="+", choices=METHODS, default=METHODS, help="ways to search; default: all")
    parser.add_argument(
        "--exact-limit", type=int, default=300_000, help="images above which exact is left out; default: 300000"
    )
    parser.add_argument("--output", type=Path, default=Path("logs/scaling"), help="a folder; default: logs/scaling")


def check(args: argparse.Namespace) -> None:
    check_least(args, images=K1, dim=1)


def run(args: argparse.Namespace) -> None:
    """Measure the rows that are missing in args.output, print each as soon as it is measured, and draw all.

    Raises:
        SystemExit: some rows failed; the others are kept.
    """
    args.output.mkdir(parents=True, exist_ok=True)
    about = {"machine": machine(args.threads, args.device), "device": args.device, "dim": args.dim}
    print(f"{args.dim} dimensions, {PER_PERSON} images of each person, {STRAYS:.0%} of the images of nobody")
    print(f"one run each on {args.device}; {about['machine']}\n")
    print(markdown(COLUMNS))
    print(markdown("-" * (len(name) - 1) + ":" for name in COLUMNS), flush=True)

    store = args.output / "rows.jsonl"
    kept = [json.loads(line) for line in store.read_text().splitlines()] if store.is_file() else []
    rows, failed = [], False
    for images in sorted(set(args.images)):
        with People(images, args) as people:
            for method in METHODS:  # exact first: the labels of the others are compared with its labels
                if method not in args.neighbors or (method == "exact" and images > args.exact_limit):
                    continue
                asked = about | {"images": images, "neighbors": method}
                row = next((row for row in kept if asked.items() <= row.items()), None)
                if row is None:
                    try:
                        row = asked | people.measure(method)
                    except Exception as error:  # an error of the library, or a killed process
                        print(f"{images:,} images, {method}: {error}", file=sys.stderr, flush=True)
                        failed = True
                        continue
                    with store.open("a") as lines:
                        lines.write(json.dumps(row) + "\n")
                cells = ("" if row[name] is None else format(row[name], form) for name, form in COLUMNS.items())
                print(markdown(cells), flush=True)
                rows.append(row)
    if rows:
        draw(rows, args.output)
    if failed:
        sys.exit("error: some rows failed; run the same command to try them again")


class People:
    """``images`` synthetic images, drawn for the first method, in a file that is removed with the context."""

    def __init__(self, images: int, args: argparse.Namespace) -> None:
        self._images = images
        self._args = args
        self._folder = tempfile.TemporaryDirectory(dir=args.output)
        self._features = Path(self._folder.name, "features.npy")
        self._exact_labels = args.output / f"exact-{images}x{args.dim}.npy"

    def __enter__(self) -> People:
        return self

    def __exit__(self, *exception: object) -> None:
        self._folder.cleanup()

    @cached_property
    def _identities(self) -> np.ndarray:
        return draw_people(self._features, self._images, self._args.dim, per_person=PER_PERSON, strays=STRAYS)

    def measure(self, method: str) -> Row:
        """Recluster in a fresh process; its labels against the truth and against those of the exact search."""
        identities, args = self._identities, self._args
        with Worker(
            partial(recluster, method=method), self._features, threads=args.threads, device=args.device
        ) as worker:
            measurement = worker.run()
        labels, to_exact = measurement.result, None
        if method == "exact":
            np.save(self._exact_labels, labels)
        elif self._exact_labels.is_file():
            exact = np.load(self._exact_labels)
            alone = exact.max() + 1 + np.arange(len(exact))  # each noise image is a separate cluster
            to_exact = label_quality(labels, np.where(exact < 0, alone, exact)).adjusted_rand_index
        return {
            **{f"{stage} s": seconds for stage, seconds in measurement.seconds.items()},
            "peak GiB": measurement.peak / 2**10,
            "beside the features GiB": measurement.beside / 2**10,
            "GPU GiB": measurement.gpu_peak / 2**10 or None,
            "clusters": int(labels.max()) + 1,
            "noise": float((labels < 0).mean()),
            "ARI": label_quality(labels, identities).adjusted_rand_index,
            "ARI to exact": to_exact,
            "measured": date.today().isoformat(),
        }


def markdown(cells: Iterable[str]) -> str:
    """One row, with each cell as wide as the name of its column."""
    return "| " + " | ".join(f"{cell:>{len(name)}}" for cell, name in zip(cells, COLUMNS, strict=True)) + " |"


def draw(rows: list[Row], folder: Path) -> None:
    """Draw seconds and memory over the number of images, with a curve for each method."""
    seconds: dict[str, list[list[Point]]] = {row["neighbors"]: [[]] for row in rows}
    memory: dict[str, list[list[Point]]] = {row["neighbors"]: [[]] for row in rows}
    for row in rows:
        features = 4 * row["images"] * row["dim"] / 2**30
        seconds[row["neighbors"]][0].append((row["images"], row["total s"]))
        memory[row["neighbors"]][0].append((row["images"], features + row["beside the features GiB"]))
    for curves, title, y_label, file in (
        (seconds, "Time of a reclustering", "seconds", "scaling_seconds.png"),
        (memory, "Peak memory of a reclustering", "GiB, features included, libraries not", "scaling_memory.png"),
    ):
        draw_curves(curves, folder / file, title=title, x_label="images", y_label=y_label, log=True)
