"""Training in stages: overlays over one config, each trained from the weights of the one before.

DCMIP (ICCV 2023) is the case at hand, with two stages. Stages run one after the other in one command, each in a folder
of its own, with a fresh optimiser and schedule.
"""

from __future__ import annotations

import copy
import gc
import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from fastreid.config import CfgNode, get_cfg
from fastreid.engine.train_loop import HookBase
from fastreid.utils import comm
from fastreid.utils.env import seed_all_rng
from torch import Tensor

from ..config import add_ice_config, merge_config_file, merge_values, value_of
from ..errors import InputError
from ..processes import of_first, run_id
from ..reporting import (
    CHOSEN,
    LABELS_FILE,
    WriteReport,
    describe_evaluations,
    metrics_file,
    read_stage,
    stage_table,
)
from .best import evaluates
from .checkpoint import read_checkpoint, write_checkpoint
from .summary import AnnounceStage
from .trainer import UnsupervisedTrainer

# All stages train one network on one machine; where each reads and writes is decided here.
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

logger = logging.getLogger(f"fastreid.{__name__}")


def stage_configs(cfg: CfgNode) -> list[CfgNode]:
    """The config of each stage: ``cfg`` under each overlay of ``STAGES``, or ``cfg`` itself where there is none.

    Several stages write to ``stage1``, ``stage2`` and so on below ``OUTPUT_DIR``. From the second on,
    ``MODEL.WEIGHTS`` is a file that ``train_stages`` writes when the stage before is done.

    Raises:
        InputError: an overlay that is no mapping, that does not fit ``cfg``, or that sets what all stages share.
    """
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


def read_run(folder: Path) -> list[CfgNode]:
    """The config of each stage of a run, whose folder may have been moved since.

    Raises:
        InputError: the folder holds no run, or one whose config does not fit this version.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise InputError(f"{folder} holds no config.yaml; it must be the OUTPUT_DIR of a run")
    cfg = get_cfg()
    add_ice_config(cfg)
    merge_config_file(cfg, str(path))
    cfg.OUTPUT_DIR = str(folder)
    return stage_configs(cfg)


def without_keys(overlays: Sequence, keys: Iterable[str]) -> tuple:
    """Copies of the overlays without ``keys`` ("SOLVER.MAX_EPOCH"), so that the command line counts in every stage."""
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


def is_complete(cfg: CfgNode) -> bool:
    """Whether the last checkpoint in ``OUTPUT_DIR`` says that all epochs of this stage are done."""
    return _last_checkpoint(cfg).get("epoch", -1) + 1 >= cfg.SOLVER.MAX_EPOCH


def is_of_this_run(cfg: CfgNode) -> bool:
    """Whether the first stage has a checkpoint from this run, before torchrun restarted its processes."""
    return _last_checkpoint(stage_configs(cfg)[0]).get("run_id") == run_id()


def best_checkpoint(cfg: CfgNode) -> str:
    """The best weights of a complete stage, which the test set chooses; the last where nothing was evaluated."""
    return os.path.join(cfg.OUTPUT_DIR, "model_best.pth") if evaluates(cfg) else last_checkpoint(cfg)


def last_checkpoint(cfg: CfgNode) -> str:
    """The weights after the last epoch of a complete stage."""
    return os.path.join(cfg.OUTPUT_DIR, "model_final.pth")


def encoder_weights(weights: dict[str, Tensor], encoder: str) -> dict[str, Tensor]:
    """One encoder of a ``MomentumReID``, "online" or "momentum", as weights that start both."""
    prefix = "momentum." if encoder == "momentum" else ""
    parts = (f"{prefix}backbone.", f"{prefix}heads.")
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(parts)}


def train_stages(cfg: CfgNode, *, resume: bool = False) -> OrderedDict | None:
    """Trains all stages of ``cfg``, one after the other; called in every process.

    Each stage after the first starts both encoders from the encoder that the stage before evaluated (``TEST.ENCODER``),
    out of its last weights or its best (``MODEL.START_FROM``), with a fresh optimiser and schedule. A report is written
    when a stage ends, also where an error or an interrupt ends it after an epoch or more; of several processes the one
    that started them has to see to that (``write_left_report``).

    Args:
        cfg: a config that passes ``check_config``.
        resume: go on after the last checkpoint, in the stage that was interrupted.

    Returns:
        In the main process the last results of the last stage, None where nothing was evaluated.

    Raises:
        InputError: a checkpoint cannot be read.
    """
    stages = stage_configs(cfg)
    report = [WriteReport(stages, Path(cfg.OUTPUT_DIR))] if comm.is_main_process() else []
    results = _train_all(stages, resume, report) if len(stages) > 1 else _train(stages[0], resume, last_hooks=report)
    best, last = best_checkpoint(stages[-1]), last_checkpoint(stages[-1])
    chosen = "" if best == last else f" (the best, {CHOSEN}; the last: {last})"
    logger.info("The weights to use: %s%s", best, chosen)
    return results


def _train_all(stages: list[CfgNode], resume: bool, last_hooks: Sequence[HookBase]) -> OrderedDict | None:
    done = 0
    while resume and done < len(stages) - 1 and of_first(partial(is_complete, stages[done])):
        done += 1
    for index in range(done, len(stages)):
        resumes = resume and index == done
        logger.info("Stage %d of %d, in %s", index + 1, len(stages), stages[index].OUTPUT_DIR)
        of_first(partial(_prepare, stages, index, resumes))
        gc.collect()  # a trainer is part of a cycle: the last one's image cache, workers and share of the GPU go now
        announce = AnnounceStage(index + 1, len(stages))
        results = _train(stages[index], resumes, first_hooks=[announce], last_hooks=last_hooks)
    if comm.is_main_process():
        logger.info("All stages:\n%s", stage_table(stages))
        for number, stage in enumerate(stages, 1):
            if evaluations := describe_evaluations(read_stage(stage), stage.TEST.ENCODER):
                logger.info("Result of stage %d: %s", number, evaluations)
    return results


def _train(cfg: CfgNode, resume: bool, **hooks: Sequence[HookBase]) -> OrderedDict | None:
    seed_all_rng(cfg.SEED)
    trainer = UnsupervisedTrainer(cfg, **hooks)
    trainer.resume_or_load(resume=resume)
    return trainer.train()


def _prepare(stages: list[CfgNode], index: int, resumes: bool) -> None:
    """Makes the folder of a stage, and the weights that it starts from where it does not resume."""
    stage = stages[index]
    os.makedirs(stage.OUTPUT_DIR, exist_ok=True)
    Path(stage.OUTPUT_DIR, "config.yaml").write_text(stage.dump())
    # Later stages start anew, whatever an earlier run has left there.
    for later in stages[index + 1 :]:
        for path in (_marker(later), metrics_file(later), Path(later.OUTPUT_DIR, LABELS_FILE)):
            Path(path).unlink(missing_ok=True)
    if index == 0 or (resumes and _marker(stage).is_file()):
        return
    before = stages[index - 1]
    best = stage.MODEL.START_FROM == "best"
    path = best_checkpoint(before) if best else last_checkpoint(before)
    start = read_checkpoint(path, mmap=True)
    write_checkpoint(stage.MODEL.WEIGHTS, {"model": encoder_weights(start["model"], before.TEST.ENCODER)})
    logger.info(
        "Both encoders start from the %s encoder of %s, epoch %d (MODEL.START_FROM %s%s)",
        before.TEST.ENCODER,
        path,
        start["epoch"] + 1,
        stage.MODEL.START_FROM,
        f": {CHOSEN}, whose labels training does without otherwise" if best else "",
    )


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


def _marker(cfg: CfgNode) -> Path:
    """The file in which fast-reid's Checkpointer names the last checkpoint."""
    return Path(cfg.OUTPUT_DIR, "last_checkpoint")


def _last_checkpoint(cfg: CfgNode) -> dict:
    """The last checkpoint of a stage, whose weights are not read before they are used; empty where there is none."""
    marker = _marker(cfg)
    return read_checkpoint(str(marker.parent / marker.read_text().strip()), mmap=True) if marker.is_file() else {}
