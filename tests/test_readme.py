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


def block(language: str, word: str = "") -> str:
    """The code block of a language that holds a word."""
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if word in text]
    return found


def test_the_clustering_alone_clusters() -> None:
    features = torch.eye(8).repeat_interleave(20, 0) + 0.01 * torch.randn(160, 8)
    names = {"features": features}
    exec(compile(block("python", "dbscan"), "clustering.py", "exec"), names)
    assert names["labels"].tolist() == [person for person in range(8) for _ in range(20)]


def test_the_loss_of_ones_own_trains(cfg: CfgNode) -> None:
    module = types.ModuleType("fastreid_ice.losses.attraction")
    module.__package__ = "fastreid_ice.losses"
    try:
        exec(compile(block("python", "AttractionLoss"), "attraction.py", "exec"), vars(module))
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
