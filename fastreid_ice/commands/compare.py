"""Trains several configs on the synthetic data, from the same weights and with the same seeds, and compares them.

fastreid-ice compare
fastreid-ice compare --seeds 5 --output logs/compare_mild DATASETS.SYNTHETIC.STRENGTH mild
fastreid-ice compare --config-file configs/ice_demo.yml --config-file my.yml SOLVER.MAX_EPOCH 20

The metrics are those after the last epoch: mean and standard deviation over the seeds. Every run is a separate command
`fastreid-ice train`, in OUTPUT/CONFIG/seedN, with its output in output.txt. Called again with the same arguments, the
command keeps complete runs and resumes the others. The table goes to table.txt, the curves of mAP to curves.png, and
the metrics of every epoch to results.json.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tabulate import tabulate

from ..config import CONFIGS, Run
from ..engine import build_config
from ..engine.stages import is_complete
from ..errors import InputError
from ..reporting import read_stage
from ..reporting.chart import Point, draw_curves
from . import command_parser

COMMAND_LINE = [sys.executable, "-m", __package__]
DEFAULT = [
    "ice_agnostic_demo",
    "ice_demo",
    "cluster_contrast_demo",
    "dcmip_demo",
    "ice_dcmip_demo",
    "ice_hybrid_demo",
    "groundtruth_demo",
]


@dataclass
class Trial:
    """One config with one seed."""

    label: str
    config: Path
    seed: int
    folder: Path
    options: list[str]

    def __post_init__(self) -> None:
        # A config that cannot work is reported before the first run starts.
        try:
            cfg, _ = build_config(str(self.config), self._settings())
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from error
        earlier = self.folder / "config.yaml"
        if earlier.is_file() and earlier.read_text() != cfg.dump():
            raise InputError(f"{self.folder} holds a run with another config; choose another --output, or delete it")
        self.stages = Run(cfg).stages

    @property
    def name(self) -> str:
        return f"{self.label}, seed {self.seed}"

    @property
    def complete(self) -> bool:
        return is_complete(self.stages[-1]) and (self.folder / "seconds.txt").is_file()

    def train(self) -> str | None:
        """Trains what is left to train. Returns None, or the last line of the error."""
        flags = ["--resume"] if self.stages[0].last_checkpoint else []
        self.folder.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        command = [*COMMAND_LINE, "train", "--config-file", str(self.config), *flags, *self._settings()]
        try:
            with (self.folder / "output.txt").open("a") as output:
                failed = _run(command, output)
        finally:
            with (self.folder / "seconds.txt").open("a") as seconds:
                seconds.write(f"{time.perf_counter() - start:.1f}\n")
        if failed:
            return ((self.folder / "output.txt").read_text().splitlines() or ["no output"])[-1]
        return None

    def figures(self) -> dict[str, float]:
        """The metrics in the table, after the last epoch."""
        first, last = self._epochs()[0], self._epochs()[-1]
        evaluated = [scalars for scalars in self._epochs() if "mAP" in scalars] or [{}]
        seconds = (self.folder / "seconds.txt").read_text().split()
        figures = {
            "start": first.get("start/mAP"),
            "mAP": evaluated[-1].get("mAP"),
            "rank-1": evaluated[-1].get("Rank-1"),
            "ARI": last.get("cluster/ari"),
            "clusters": last.get("cluster/number"),
            "seconds": sum(map(float, seconds)),
        }
        return {name: value for name, value in figures.items() if value is not None}

    def record(self) -> dict[str, object]:
        """A record of the run: what was trained, and the scalars of each epoch that show its course."""
        epochs = [{name: round(scalars[name], 4) for name in RECORDED if name in scalars} for scalars in self._epochs()]
        return {
            "name": self.label,
            "config": self.config.name,
            "options": self.options,
            "seed": self.seed,
            "seconds": self.figures()["seconds"],
            "epochs": epochs,
        }

    def curve(self) -> list[Point]:
        """(epochs trained, mAP), the stages one after the other."""
        epochs = self._epochs()
        points = [(float(done), scalars["mAP"]) for done, scalars in enumerate(epochs, 1) if "mAP" in scalars]
        return [(0.0, epochs[0]["start/mAP"]), *points] if "start/mAP" in epochs[0] else points

    def _settings(self) -> list[str]:
        return [*self.options, "SEED", str(self.seed), "OUTPUT_DIR", str(self.folder)]

    def _epochs(self) -> list[dict[str, float]]:
        return [scalars for stage in self.stages for scalars in read_stage(stage).values()]


def _run(command: Sequence[str], output: TextIO) -> int:
    """The exit code of ``command``, which ends with this process: a SIGTERM to this one would leave it running."""

    def leave(number: int, _: object) -> None:
        sys.exit(128 + number)

    earlier = signal.signal(signal.SIGTERM, leave)
    try:
        with subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
            try:
                return process.wait()
            except BaseException:
                process.terminate()
                process.wait()
                raise
    finally:
        signal.signal(signal.SIGTERM, earlier)


RECORDED = (
    *("start/mAP", "start/Rank-1", "mAP", "Rank-1"),
    *("cluster/number", "cluster/noise_share", "cluster/largest", "cluster/ari"),
    *(f"{clock}/{part}" for clock in ("seconds", "processor_seconds") for part in ("start", "epoch", "evaluation")),
)
COLUMNS = {"mAP": ".1f", "rank-1": ".1f", "ARI": ".3f", "clusters": ".0f", "seconds": ".0f"}


def comparison_table(groups: dict[str, list[Trial]]) -> str:
    """A row for the weights that all runs start from, then a row per config over its complete runs."""
    rows, starts = [], []
    for name, runs in groups.items():
        figures = [run.figures() for run in runs]
        starts += [run["start"] for run in figures if "start" in run]
        cells = [mean_and_spread([run[key] for run in figures if key in run], COLUMNS[key]) for key in COLUMNS]
        rows.append([name, len(runs), *cells])
    if starts:
        rows.insert(0, ["(start)", None, mean_and_spread(starts, ".1f"), *[None] * (len(COLUMNS) - 1)])
    headers = ["config", "runs", *COLUMNS]
    align = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(rows, headers, missingval="", disable_numparse=True, colalign=align)


def mean_and_spread(values: Sequence[float], form: str) -> str:
    """The mean and the standard deviation in a format such as ".1f"; without a deviation if all values are equal."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):{form}}" if len(set(values)) > 1 else ""
    return f"{statistics.mean(values):{form}}{spread}"


def by_name(configs: Sequence[Path]) -> dict[str, Path]:
    """The files by their names.

    Raises:
        InputError: two have the same.
    """
    named = {config.stem: config for config in configs}
    if len(named) < len(configs):
        raise InputError("two configs have the same file name, so their folders would be the same; rename one")
    return named


def compare(
    configs: Mapping[str, Path],
    seeds: int,
    output: Path,
    options: Sequence[str],
    own_options: Mapping[str, Sequence[str]] | None = None,
) -> bool:
    """Trains, then writes and prints the table. Returns whether all runs are complete.

    Args:
        configs: the files, by the name that each has in the table and below ``output``.
        seeds: runs of each config.
        output: the folder of all runs.
        options: config keys and values for all runs.
        own_options: further ones for some of ``configs``, by name; they override ``options``.

    Raises:
        InputError: a config that cannot work, or a folder in ``output`` that holds another run.
    """
    own = own_options or {}
    groups = {
        name: [
            Trial(name, config, seed, output / name / f"seed{seed}", [*options, *own.get(name, ())])
            for seed in range(seeds)
        ]
        for name, config in configs.items()
    }
    failed = []
    # Seed by seed, so that a comparison stopped early has runs of all configs.
    for run in (runs[seed] for seed in range(seeds) for runs in groups.values()):
        reason = None if run.complete else run.train()
        if reason is None:
            print(
                f"{run.name}: " + ", ".join(f"{name} {value:.4g}" for name, value in run.figures().items()), flush=True
            )
        else:
            print(f"{run.name} failed: {reason} ({run.folder / 'output.txt'})", flush=True)
            failed.append(run)
    done = {name: [run for run in runs if run not in failed] for name, runs in groups.items()}
    done = {name: runs for name, runs in done.items() if runs}
    table = comparison_table(done)
    (output / "table.txt").write_text(table + "\n")
    records = [run.record() for runs in done.values() for run in runs]
    (output / "results.json").write_text(json.dumps(records, indent=1) + "\n")
    print(table)
    curves = {name: [run.curve() for run in runs] for name, runs in done.items()}
    if any(point for runs in curves.values() for run in runs for point in run):
        draw_curves(curves, output / "curves.png", title="mAP over training", x_label="epochs", y_label="mAP")
    return not failed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_parser("compare", __doc__)
    parser.add_argument(
        "--config-file", metavar="FILE", action="append", type=Path, help="once per config; default: all demo configs"
    )
    parser.add_argument(
        "--seeds", metavar="N", type=int, default=3, help="runs of each config, with seeds 0 to N - 1; default: 3"
    )
    parser.add_argument(
        "--output", metavar="FOLDER", type=Path, default=Path("logs/compare"), help="default: logs/compare"
    )
    parser.add_argument(
        "options", nargs=argparse.REMAINDER, help="config keys and values for all runs, such as SOLVER.MAX_EPOCH 20"
    )
    args = parser.parse_args(arguments)
    if args.seeds < 1:
        parser.error("--seeds must be at least 1")
    configs = args.config_file or [CONFIGS / f"{name}.yml" for name in DEFAULT]
    try:
        complete = compare(by_name(configs), args.seeds, args.output, args.options)
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command continues\n")
        sys.exit(130)  # as a shell reports SIGINT
    sys.exit(0 if complete else "error: some runs failed; the same command resumes them")
