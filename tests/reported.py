"""The folder of a run as training leaves it, with made-up scalars and clusters: for tests about its report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from fastreid.config import CfgNode

from fastreid_ice.config import Run
from fastreid_ice.reporting import PseudoLabels, write_report


def make_run(cfg: CfgNode, clustering: PseudoLabels | None, epochs: int = 3, scalars: dict | None = None) -> Path:
    """A run's folder as training leaves it."""
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(cfg.dump())
    lines = [
        {"iteration": epoch * cfg.SOLVER.ITERS_PER_EPOCH, "cluster/number": 5 + epoch, "loss_cluster_proxy": 2 - epoch}
        | {"cluster/noise_share": 0.1, "cluster/churn": float("nan")}
        | (scalars or {})
        for epoch in range(epochs)
    ]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if clustering:
        clustering.write(folder / "labels.csv")
    return folder


def write_left(cfg: CfgNode, clustering: PseudoLabels) -> Path:
    make_run(cfg, clustering)
    return write_report(Run(cfg))


def clustering_of(paths: list[Path], labels: list[int], cameras: list[str] | None = None) -> PseudoLabels:
    distances = np.linspace(0.1, 0.9, len(paths), dtype=np.float32)
    return PseudoLabels([str(path) for path in paths], cameras or [""] * len(paths), np.array(labels), distances)
