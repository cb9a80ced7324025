"""A run: its folder, its stages, and the names of the files in them."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastreid.config import CfgNode, get_cfg

from ..errors import InputError
from .files import merge_config_file, merge_values
from .keys import add_ice_config, value_of

CONFIG = "config.yaml"

# All stages train one network on one machine; this module decides where each reads and writes.
COMMON = (
    "STAGES",
    "IMPORTS",
    "OUTPUT_DIR",
    "MODEL.DEVICE",
    "MODEL.META_ARCHITECTURE",
    "MODEL.BACKBONE",
    "MODEL.HEADS",
    "MODEL.WEIGHTS",
)


@dataclass(frozen=True, eq=False)
class Stage:
    """One training: its config, and the files that it writes to its ``OUTPUT_DIR``."""

    cfg: CfgNode

    @property
    def folder(self) -> Path:
        return Path(self.cfg.OUTPUT_DIR)

    @property
    def config(self) -> Path:
        return self.folder / CONFIG

    @property
    def metrics(self) -> Path:
        """The scalars, a line of JSON each time they are written."""
        return self.folder / "metrics.json"

    @property
    def labels(self) -> Path:
        """The pseudo labels of the last clustering."""
        return self.folder / "labels.csv"

    @property
    def radii(self) -> Path:
        """What ``CLUSTER.AUTO_EPS`` compared at the last clustering."""
        return self.folder / "radii.csv"

    @property
    def marker(self) -> Path:
        """The file in which fast-reid's Checkpointer names the last checkpoint."""
        return self.folder / "last_checkpoint"

    @property
    def last_checkpoint(self) -> Path | None:
        """The checkpoint that a run resumes from, None if there is none yet."""
        return self.folder / self.marker.read_text().strip() if self.marker.is_file() else None

    @property
    def evaluates(self) -> bool:
        """Whether the stage evaluates, at least after its last epoch."""
        return bool(self.cfg.DATASETS.TESTS) and self.cfg.TEST.EVAL_PERIOD >= 0

    @property
    def last_weights(self) -> Path:
        """The weights after the last epoch, once the stage is complete."""
        return self.folder / "model_final.pth"

    @property
    def best_weights(self) -> Path:
        """The weights of the best evaluation, chosen on the test set; the last weights if nothing is evaluated."""
        return self.folder / "model_best.pth" if self.evaluates else self.last_weights

    @property
    def weights(self) -> Path | None:
        """The weights to use: the best; if there are none yet the last, or the last checkpoint; None without any."""
        found = (self.best_weights, self.last_weights, self.last_checkpoint)
        return next((path for path in found if path and path.is_file()), None)


class Run:
    """What a config trains: one stage, or several that are each trained from the weights of the one before.

    Several stages write to ``stage1``, ``stage2`` and so on in ``OUTPUT_DIR``. From the second on, ``MODEL.WEIGHTS`` is
    a file that is written when the stage before is done.

    Args:
        cfg: the config; each mapping in its ``STAGES``, merged over it, makes a stage.

    Attributes:
        folder: the run's, with its report and log.
        stages: at least one.

    Raises:
        InputError: an entry of ``STAGES`` is not a mapping, does not fit ``cfg``, or sets a key that all stages share.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.folder = Path(cfg.OUTPUT_DIR)
        self.stages = [Stage(stage) for stage in _stage_configs(cfg)]

    @classmethod
    def read(cls, folder: Path) -> Run:
        """The run that wrote to a folder, which may have been moved since.

        Raises:
            InputError: the folder holds no run, or a run whose config does not fit this version.
        """
        path = folder / CONFIG
        if not path.is_file():
            raise InputError(f"{folder} holds no config.yaml; it must be the OUTPUT_DIR of a run")
        cfg = get_cfg()
        add_ice_config(cfg)
        merge_config_file(cfg, str(path))
        cfg.OUTPUT_DIR = str(folder)
        return cls(cfg)

    @property
    def trained(self) -> Stage | None:
        """The last stage that has weights, None if there is none."""
        return next((stage for stage in reversed(self.stages) if stage.weights), None)

    @property
    def config(self) -> Path:
        """The whole config, as the run was trained."""
        return self.folder / CONFIG

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def corrections(self) -> Path:
        """What a person has said about the images, if anything."""
        return self.folder / "corrections.csv"

    @property
    def labels(self) -> Path | None:
        """The pseudo labels of the last clustering in any stage, None if there was none."""
        return next((stage.labels for stage in reversed(self.stages) if stage.labels.is_file()), None)


def without_keys(overlays: Sequence, keys: Iterable[str]) -> tuple:
    """Copies of the overlays without ``keys`` ("SOLVER.MAX_EPOCH"), so that the command line applies in every stage."""
    overlays = copy.deepcopy(tuple(overlays))
    for overlay in overlays:
        for key in keys:
            *path, last = key.split(".")
            node = overlay
            for part in path:
                node = node.get(part) if isinstance(node, dict) else None
            if isinstance(node, dict):
                node.pop(last, None)
    return overlays


def _stage_configs(cfg: CfgNode) -> list[CfgNode]:
    if not cfg.STAGES:
        return [cfg]
    stages = [_overlaid(cfg, overlay, number) for number, overlay in enumerate(cfg.STAGES, 1)]
    if len(stages) == 1:
        return stages
    for number, stage in enumerate(stages, 1):
        stage.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, f"stage{number}")
        if number > 1:
            stage.MODEL.WEIGHTS = os.path.join(stage.OUTPUT_DIR, "start.pth")
            stage.MODEL.BACKBONE.PRETRAIN = False
    return stages


def _overlaid(cfg: CfgNode, overlay: object, number: int) -> CfgNode:
    if not isinstance(overlay, dict):
        raise InputError(f"STAGES, stage {number}: {overlay!r} must be a mapping of config keys, as in a config file")
    stage = cfg.clone()
    stage.defrost()
    try:
        merge_values(stage, overlay)
    except InputError as error:
        raise InputError(f"STAGES, stage {number}: {error}") from error
    for key in COMMON:
        if value_of(stage, key) != value_of(cfg, key):
            raise InputError(f"STAGES, stage {number}: {key} is common to all stages; set it outside of STAGES")
    stage.STAGES = ()
    return stage
