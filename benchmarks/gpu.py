"""All that needs a GPU, part after part, in one run of limited length and one JSON file."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import NamedTuple

from .measuring import check_least, machine

LOG_LINES = 30
ROOT = Path(__file__).resolve().parent.parent
MOBILENET = ["MODEL.BACKBONE.NAME", "build_mobilenetv2_backbone", "MODEL.BACKBONE.DEPTH", "1.0x"]
MOBILENET += ["MODEL.BACKBONE.FEAT_DIM", "1280", "MODEL.HEADS.POOL_LAYER", "GlobalAvgPool"]
FAST = ["SOLVER.AMP.ENABLED", "True", "DATALOADER.CACHE", "ram", "MODEL.COMPILE", "True"]
SMALL = [
    "INPUT.SIZE_TRAIN",
    "[64,32]",
    "INPUT.SIZE_TEST",
    "[64,32]",
    "SOLVER.IMS_PER_BATCH",
    "16",
    "MODEL.BN_SPLITS",
    "1",
]


class Part(NamedTuple):
    """A command of ``python -m``.

    Attributes:
        arguments: without those of the size.
        sizes: at the size of real data.
        tiny: sizes for a CPU, to try the script.
    """

    arguments: list[str]
    sizes: list[str]
    tiny: list[str]


def _bench(command: str, sizes: str, tiny: str, arguments: str = "") -> Part:
    return Part(["benchmarks", command, *arguments.split()], sizes.split(), tiny.split())


# Those that matter most come first, since time may run out.
PARTS = {
    "tests": Part(["pytest", "-m", "gpu", "-rs", "-p", "no:cacheprovider", "tests"], [], []),
    "recluster": _bench("recluster", "--repeats 3", "--images 300 --dim 16 --repeats 1"),
    "recluster, size of MSMT17": _bench("recluster", "--images 32621 --repeats 2", "--images 400 --dim 16 --repeats 1"),
    "a million images": _bench(
        "scaling", "--images 1000000 --exact-limit 1000000", "--images 1000 --dim 16", "--neighbors exact"
    ),
    "step": _bench(
        "step", "--batch 32 --compile", "--network resnet18 --batch 8 --size 64 32 --clusters 20 --repeats 1"
    ),
    "input": Part(
        ["benchmarks", "input", "--config-file", "configs/ice_market.yml"],
        ["--images", "4096", "--repeats", "3", "SOLVER.AMP.ENABLED", "True"],
        ["--images", "60", "--steps", "1", "--repeats", "1", *MOBILENET, *SMALL],
    ),
    "recipe": Part(
        ["benchmarks", "recipe", "--config-file", "configs/ice_market.yml", "--synthetic", "--profile"],
        ["--steps", "100", *MOBILENET, *FAST],
        ["--images", "60", "--steps", "2", *MOBILENET, *SMALL],
    ),
    "evaluate": _bench("evaluate", "--repeats 3", "--queries 20 --gallery 200 --dim 16 --repeats 1"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", metavar="FILE", type=Path, default=Path("gpu.json"), help="default: gpu.json")
    parser.add_argument(
        "--minutes", type=int, default=10, help="after which a part is stopped, and no other starts; default: 10"
    )
    parser.add_argument("--tiny", action="store_true", help="sizes at which a CPU takes minutes, to try the script")


def check(args: argparse.Namespace) -> None:
    check_least(args, minutes=1)
    if not (ROOT / "tests").is_dir():
        raise argparse.ArgumentError(None, "gpu needs a checkout, whose tests it runs")


def run(args: argparse.Namespace) -> None:
    """Writes the file after each part, whole.

    Raises:
        SystemExit: a part failed or found no time; what was measured is in the file.
    """
    start = time.monotonic()
    found = {"date": str(date.today()), "machine": machine(args.threads, args.device), "parts": {}}
    for name, part in PARTS.items():
        left = 60 * args.minutes - (time.monotonic() - start)
        print(f"{name}: {left:.0f} s are left ...", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            command = [*part.arguments, *_options(part, args, scratch), *(part.tiny if args.tiny else part.sizes)]
            found["parts"][name] = {"command": command} | run_part(command, left)
        written = args.output.with_name(f"{args.output.name}.part")
        written.write_text(json.dumps(found, indent=1) + "\n")
        written.replace(args.output)
    print(f"Written to {args.output}")
    unfinished = [name for name, record in found["parts"].items() if record["exit"] != 0]
    if unfinished:
        sys.exit(f"error: not finished: {', '.join(unfinished)}")


def _options(part: Part, args: argparse.Namespace, scratch: str) -> list[str]:
    if part.arguments[0] != "benchmarks":
        return []
    # A fresh folder, since `scaling` does not measure again what an earlier run left.
    output = ["--output", scratch] if "scaling" in part.arguments else []
    return ["--device", args.device, "--threads", str(args.threads), *output]


def run_part(command: list[str], seconds: float) -> dict[str, object]:
    """Exit status, seconds, tables, other lines, and the end of the log; status None: not started, -9: stopped."""
    if seconds <= 0:
        return {"exit": None, "seconds": 0.0}
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, log = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with its own processes
        output, log = process.communicate()
    return {
        "exit": process.returncode,
        "seconds": round(time.monotonic() - start, 1),
        "tables": list(read_tables(output)),
        "lines": [line for line in output.splitlines() if line.strip() and not line.startswith("|")],
        "log": log.splitlines()[-LOG_LINES:],
    }


def read_tables(text: str) -> Iterator[list[dict[str, str]]]:
    """The tables of a text in Markdown: the rows of each, by the names of its columns."""
    header: list[str] | None = None
    rows: list[dict[str, str]] = []
    for line in [*text.splitlines(), ""]:
        if not line.startswith("|"):
            if header is not None:
                yield rows
            header, rows = None, []
            continue
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if header is None:
            header = cells
        elif not set("".join(cells)) <= set(":- "):
            rows.append(dict(zip(header, cells, strict=True)))
