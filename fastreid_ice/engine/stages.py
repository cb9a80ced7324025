"""Training in stages, each from the weights of the stage before: DCMIP (ICCV 2023) has two.

They run one after the other in one command, each in its own folder, with a new optimiser and schedule.
"""

from __future__ import annotations

import gc
import logging
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

from fastreid.config import CfgNode
from fastreid.engine.train_loop import HookBase
from fastreid.utils import comm
from fastreid.utils.env import seed_all_rng
from torch import Tensor

from ..config import Run, Stage
from ..processes import of_first, run_id
from ..reporting import CHOSEN, WriteReport, describe_evaluations, read_stage, stage_table
from .checkpoint import read_checkpoint, write_checkpoint
from .summary import AnnounceStage
from .trainer import UnsupervisedTrainer

logger = logging.getLogger(f"fastreid.{__name__}")


def is_complete(stage: Stage) -> bool:
    """Whether the last checkpoint of a stage says that all its epochs are done."""
    return _last_state(stage).get("epoch", -1) + 1 >= stage.cfg.SOLVER.MAX_EPOCH


def is_of_this_run(run: Run) -> bool:
    """Whether the first stage has a checkpoint of this run, from before torchrun restarted its processes."""
    return _last_state(run.stages[0]).get("run_id") == run_id()


def _last_state(stage: Stage) -> dict:
    """The last checkpoint, whose weights are only read when they are used; empty if there is none."""
    path = stage.last_checkpoint
    return read_checkpoint(str(path), mmap=True) if path else {}


def encoder_weights(weights: dict[str, Tensor], encoder: str) -> dict[str, Tensor]:
    """The weights of one encoder of a ``MomentumReID``, "online" or "momentum", as initial weights of both."""
    prefix = "momentum." if encoder == "momentum" else ""
    parts = (f"{prefix}backbone.", f"{prefix}heads.")
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(parts)}


def train_stages(cfg: CfgNode, *, resume: bool = False) -> OrderedDict | None:
    """Trains all stages of ``cfg``, one after the other; called in every process.

    Each stage after the first starts both encoders from the encoder that the stage before evaluated (``TEST.ENCODER``),
    from its last or its best weights (``MODEL.START_FROM``), with a new optimiser and schedule. A report is written
    when a stage ends, also if an error or an interrupt ends it after at least one epoch. With several processes, the
    process that started them must do this (``write_left_report``).

    Args:
        cfg: a config that passes ``check_config``.
        resume: continue after the last checkpoint, in the stage that was interrupted.

    Returns:
        In the main process the last results of the last stage, None if nothing was evaluated.

    Raises:
        InputError: a checkpoint cannot be read.
    """
    run = Run(cfg)
    report = [WriteReport(run)] if comm.is_main_process() else []
    several = len(run.stages) > 1
    results = _train_all(run.stages, resume, report) if several else _train(run.stages[0], resume, last_hooks=report)
    best, last = run.stages[-1].best_weights, run.stages[-1].last_weights
    chosen = "" if best == last else f" (the best, {CHOSEN}; the last: {last})"
    logger.info("The weights to use: %s%s", best, chosen)
    logger.info("fastreid-ice recluster, export, report and label find them by --run %s", run.folder)
    return results


def _train_all(stages: list[Stage], resume: bool, last_hooks: Sequence[HookBase]) -> OrderedDict | None:
    done = 0
    while resume and done < len(stages) - 1 and of_first(partial(is_complete, stages[done])):
        done += 1
    for index in range(done, len(stages)):
        resumes = resume and index == done
        logger.info("Stage %d of %d, in %s", index + 1, len(stages), stages[index].folder)
        of_first(partial(_prepare, stages, index, resumes))
        gc.collect()  # trainers are in reference cycles: this frees the last one's image cache, workers and GPU memory
        announce = AnnounceStage(index + 1, len(stages))
        results = _train(stages[index], resumes, first_hooks=[announce], last_hooks=last_hooks)
    if comm.is_main_process():
        logger.info("All stages:\n%s", stage_table(stages))
        for number, stage in enumerate(stages, 1):
            if evaluations := describe_evaluations(read_stage(stage), stage.cfg.TEST.ENCODER):
                logger.info("Result of stage %d: %s", number, evaluations)
    return results


def _train(stage: Stage, resume: bool, **hooks: Sequence[HookBase]) -> OrderedDict | None:
    seed_all_rng(stage.cfg.SEED)
    trainer = UnsupervisedTrainer(stage.cfg, **hooks)
    trainer.resume_or_load(resume=resume)
    return trainer.train()


def _prepare(stages: list[Stage], index: int, resumes: bool) -> None:
    """Creates the folder of a stage, and the weights that it starts from if it does not resume."""
    stage = stages[index]
    stage.folder.mkdir(parents=True, exist_ok=True)
    stage.config.write_text(stage.cfg.dump())
    # Later stages start afresh, even if an earlier run has left files there.
    for later in stages[index + 1 :]:
        for path in (later.marker, later.metrics, later.labels):
            path.unlink(missing_ok=True)
    if index == 0 or (resumes and stage.last_checkpoint):
        return
    before = stages[index - 1]
    start_from, encoder = stage.cfg.MODEL.START_FROM, before.cfg.TEST.ENCODER
    path = before.best_weights if start_from == "best" else before.last_weights
    start = read_checkpoint(str(path), mmap=True)
    write_checkpoint(stage.cfg.MODEL.WEIGHTS, {"model": encoder_weights(start["model"], encoder)})
    logger.info(
        "Both encoders start from the %s encoder of %s, epoch %d (MODEL.START_FROM %s%s)",
        encoder,
        path,
        start["epoch"] + 1,
        start_from,
        f": {CHOSEN}, whose labels are not used in training otherwise" if start_from == "best" else "",
    )
