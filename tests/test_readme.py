"""What README shows works as it stands there."""

from __future__ import annotations

import re
import types
from pathlib import Path

import torch
import yaml
from fastreid.config import CfgNode

from fastreid_ice.losses import LOSS_REGISTRY
from support import ROOT, train

README = (ROOT / "README.md").read_text()


def block(language: str) -> str:
    """The first code block of a language."""
    return re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)[1]


def test_the_loss_of_ones_own_trains(cfg: CfgNode) -> None:
    module = types.ModuleType("fastreid_ice.losses.attraction")
    module.__package__ = "fastreid_ice.losses"
    try:
        exec(compile(block("python"), "attraction.py", "exec"), vars(module))
        overlay = yaml.safe_load(block("yaml"))
        assert (ROOT / "configs" / overlay.pop("_BASE_")).is_file() and overlay.pop("OUTPUT_DIR")
        cfg.merge_from_other_cfg(CfgNode(overlay))
        cfg.CLUSTER.NAME = "GroundTruth"
        cfg.SOLVER.MAX_EPOCH = 1
        trainer = train(cfg)
    finally:
        LOSS_REGISTRY._obj_map.pop("AttractionLoss", None)
    history = trainer.storage.histories()
    assert {"loss_attraction", "loss_hard_instance"} <= set(history) and "loss_cluster_proxy" not in history
    term = trainer.model.losses["loss_attraction"]
    assert (term.scale, term.momentum) == (0.5, 0.8)
    torch.testing.assert_close(term.centroids.norm(dim=1), torch.ones(6))


def test_files_that_readme_names_exist() -> None:
    named = set(re.findall(r"(?:configs|docs|tools|tests)/[\w./-]+\.\w+", README))
    named |= {f"configs/{name}" for name in re.findall(r"`(ice_\w+\.yml)`", README)}
    assert len(named) > 8
    assert not [name for name in sorted(named) if not Path(ROOT, name).is_file()]
