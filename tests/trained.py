"""The folder of a run as training leaves it, with weights that are only drawn: for tests about what comes after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastreid.modeling import build_model

from fastreid_ice.reporting import PseudoLabels
from support import small_config


def make_trained(folder: Path, crops: Path, **changes: Any) -> Path:
    """A run without evaluation: its config, ``model_final.pth`` and ``labels.csv``; two encoders that differ.

    Args:
        folder: that of the run, which is made.
        crops: images named like Market-1501's, whose identities are the clusters.
        changes: as for ``small_config``.
    """
    folder.mkdir(parents=True)
    cfg = small_config(OUTPUT_DIR=str(folder), DATASETS__TESTS=(), **changes)
    (folder / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    cfg.MODEL.COMPILE = False  # takes seconds, and weights are the same
    model = build_model(cfg)
    with torch.no_grad():
        for parameter in model.momentum.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    paths = sorted(crops.glob("*.jpg"))
    labels = np.array([int(path.name[:4]) for path in paths])
    PseudoLabels([str(path) for path in paths], [path.name[6] for path in paths], labels, np.zeros(len(paths))).write(
        folder / "labels.csv"
    )
    return folder
