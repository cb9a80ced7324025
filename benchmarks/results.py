"""Turns the recorded runs in docs/results into the table and the picture of docs/market1501.md.

python -m benchmarks.results

A file is one run: its record in results.json of `fastreid-ice bench market`, and the commit that trained it. Its name
is METHOD-START-seedN.json, with a row of `bench market` as the method.
"""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastreid_ice.commands.compare import mean_and_spread
from fastreid_ice.reporting.chart import Point, draw_curves

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "market1501.md"
MARK = "<!-- from docs/results by benchmarks/results.py -->\n"
START = "osnet"
METHODS = {
    "ice_agnostic": "ICE, camera-agnostic",
    "ice": "ICE, camera-aware",
    "cluster_contrast": "Cluster Contrast",
    "dcmip": "DCMIP, both stages",
    "hybrid": "ICE with DCMIP's proxies",
    "o2cap": "O2CAP",
    "ice_camera_norm": "ICE, `CLUSTER.CAMERA_NORM`",
    "hybrid_camera_norm": "ICE with DCMIP's proxies, `CLUSTER.CAMERA_NORM`",
    "o2cap_camera_norm": "O2CAP, `CLUSTER.CAMERA_NORM`",
    "o2cap_camera_norm_ca_jaccard": "O2CAP, `CLUSTER.CAMERA_NORM`, `CLUSTER.DISTANCE ca_jaccard`",
    "hybrid_camera_norm_precise_bn": "ICE with DCMIP's proxies, `CLUSTER.CAMERA_NORM`, `TEST.PRECISE_BN`",
    "ice_ca_jaccard": "ICE, `CLUSTER.DISTANCE ca_jaccard`",
    "ice_auto_eps": "ICE, `CLUSTER.AUTO_EPS`",
    "ice_neighbor_labels": "ICE, labels refined by neighbours",
    "o2cap_camera_norm_averaged": "O2CAP, `CLUSTER.CAMERA_NORM`, averaged weights, twice the learning rate",
    "fast": "O2CAP, `CLUSTER.CAMERA_NORM`, averaged weights, first layers frozen, clustered every 225 steps",
    "ice_groundtruth": "ICE, true identities in place of clusters",
    "baseline": "fast-reid's Baseline, with labels",
}
# Runs of other repositories, of which only the metrics are here.
PUBLISHED = {
    "published_cluster_contrast": "the published code of Cluster Contrast",
    "published_ice": "the published code of ICE, camera-aware",
}
LONGER = ("o2cap_camera_norm_averaged_longer", "o2cap_camera_norm_longer")  # of another budget: not in the table
VARIANTS = ("ice_without_online_view", "dcmip_momentum_store", "fast_unfrozen")  # of a row by one key: not in the table
# More curves than colours could not be told apart.
CHARTED = (
    *LONGER,
    "o2cap_camera_norm_averaged",
    "ice_groundtruth",
    "o2cap_camera_norm",
    "ice",
    "published_ice",
    "weak_market",
)
EPOCHS = (2, 4, 6)
OTHER_EPOCHS = ("fast", "baseline")  # of 225 steps, and passes over all images

Run = Mapping[str, Any]


def read_runs(folder: Path = DOCS / "results") -> dict[tuple[str, str], list[Run]]:
    """The runs by method and start, in the order of their seeds."""
    runs = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        method, start, _ = path.stem.split("-")
        runs[method, start].append(json.loads(path.read_text()))
    return dict(runs)


def table(runs: Mapping[tuple[str, str], Sequence[Run]]) -> str:
    """A row for each method from ``START``, with mean and standard deviation over its runs; the best mAP comes last."""
    rows = {}
    for method, label in (METHODS | PUBLISHED).items():
        if found := runs.get((method, START)):
            if method in OTHER_EPOCHS:
                cells = ["", "", _evaluated(found, len(found[0]["epochs"]))]
            else:
                cells = [_evaluated(found, epoch) for epoch in EPOCHS]
            clusters = [run["epochs"][-1] for run in found]
            cells += [
                mean_and_spread(
                    [scale * each[f"cluster/{name}"] for each in clusters if f"cluster/{name}" in each], form
                )
                for name, scale, form in (("number", 1, ".0f"), ("noise_share", 100, ".0f"), ("ari", 1, ".3f"))
            ]
            commits = ", ".join(dict.fromkeys(run["commit"] for run in found))
            rows[label] = [f"{label} (`{method}`)", *cells, str(len(found)), commits], _last(found)
    head = ["", *(f"epoch {epoch}" for epoch in EPOCHS), "clusters", "noise %", "ARI", "seeds", "commit"]
    lines = [head, ["---"] * len(head), *(cells for cells, _ in sorted(rows.values(), key=lambda row: row[1]))]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _last(runs: Sequence[Run]) -> float:
    return statistics.mean(run["epochs"][-1]["mAP"] for run in runs)


def _evaluated(runs: Sequence[Run], epoch: int) -> str:
    """mAP / rank-1 after an epoch, empty where there was no evaluation."""
    epochs = [run["epochs"][epoch - 1] for run in runs if epoch <= len(run["epochs"])]
    found = [scalars for scalars in epochs if "mAP" in scalars]
    if not found:
        return ""
    return " / ".join(mean_and_spread([scalars[name] for scalars in found], ".1f") for name in ("mAP", "Rank-1"))


def curve(run: Run) -> list[Point]:
    """(epochs trained, mAP), with that of the start if it was evaluated."""
    points = [(float(done), scalars["mAP"]) for done, scalars in enumerate(run["epochs"], 1) if "mAP" in scalars]
    start = run["epochs"][0].get("start/mAP")
    return points if start is None else [(0.0, start), *points]


def main() -> None:
    runs = read_runs()
    before, _, after = re.split(f"({re.escape(MARK)}(?:\\|.*\n)*)", PAGE.read_text())
    PAGE.write_text(f"{before}{MARK}{table(runs)}{after}")
    curves = {
        f"{method} from {start}": [curve(run) for run in found]
        for (method, start), found in runs.items()
        if method in CHARTED
    }
    draw_curves(curves, DOCS / "market1501_curves.png", title="Market-1501", x_label="epochs trained", y_label="mAP, %")


if __name__ == "__main__":
    main()
