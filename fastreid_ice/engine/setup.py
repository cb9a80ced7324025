"""Builds the config of a run from a file and options, and checks it before anything is written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from fastreid.config import CfgNode, get_cfg

from ..config import (
    CHOSEN_BY,
    Run,
    add_ice_config,
    import_files,
    merge_config_file,
    merge_options,
    shipped_file,
    without_keys,
)
from ..data import existing_tests, fit_size
from ..errors import InputError
from ..modeling import trains_without_labels
from .checks import check_config
from .fallback import fall_back


def read_config(path: str, options: Sequence[str] = ()) -> CfgNode:
    """The config of a file, or the default one for "", overridden by the keys and values of ``options``.

    A value that these name is not chosen by another key as well (``CHOSEN_BY``), unless they name that one too.
    """
    cfg = get_cfg()
    add_ice_config(cfg)
    if path:
        merge_config_file(cfg, shipped_file(path))
    named = options[::2]
    for key, by in CHOSEN_BY.items():
        if key in named and by not in named:
            options = [*options, by, "False"]
    merge_options(cfg, options)
    cfg.STAGES = without_keys(cfg.STAGES or (), options[::2])  # a bare `STAGES:` is None
    cfg.MODEL.WEIGHTS = shipped_file(cfg.MODEL.WEIGHTS)
    if cfg.CORRECTIONS:  # so that commands find the file of a run from any folder
        cfg.CORRECTIONS = os.path.abspath(cfg.CORRECTIONS)
    return cfg


def build_config(
    path: str,
    options: Sequence[str] = (),
    *,
    resume: bool = False,
    eval_only: bool = False,
    num_processes: int = 1,
    num_local_processes: int = 1,
) -> tuple[CfgNode, str]:
    """The whole config of a run, checked and frozen.

    Args:
        path: a config file, or one that comes with the package (``shipped_file``).
        options: keys and values that override those of the file.
        resume: the run continues from its last checkpoint.
        eval_only: ``MODEL.WEIGHTS`` are evaluated and not trained.
        num_processes, num_local_processes: how many train, on all machines together and on this one.

    Returns:
        The config, and a text for the log if other weights than those of the config are used.

    Raises:
        InputError: the config cannot work; the message is a sentence that names the key or file.
    """
    cfg = read_config(path, options)
    import_files(cfg.IMPORTS)
    cfg.DATASETS.TESTS = existing_tests(cfg)
    if eval_only and not cfg.DATASETS.TESTS:
        raise InputError("--eval-only: nothing to evaluate; DATASETS.TESTS must name a dataset with a test set")
    if cfg.MODEL.DEVICE == "auto":
        cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    if resume or (cfg.MODEL.WEIGHTS and (eval_only or trains_without_labels(cfg))):
        cfg.MODEL.BACKBONE.PRETRAIN = False  # they replace the whole backbone
    first = Run(cfg).stages[0]
    if resume and not first.last_checkpoint:
        raise InputError(
            f"--resume: {str(first.folder)!r} (OUTPUT_DIR) holds no checkpoint; train without --resume first"
        )
    if resume and cfg.INPUT.AUTO_SIZE and first.config.is_file():  # the images may have changed since
        trained = Run.read(first.folder).stages[0].cfg.INPUT
        cfg.INPUT.SIZE_TRAIN, cfg.INPUT.SIZE_TEST = trained.SIZE_TRAIN, trained.SIZE_TEST
        cfg.INPUT.PADDING.SIZE, cfg.INPUT.AUTO_SIZE = trained.PADDING.SIZE, False
    fit_size(cfg)
    check_config(cfg, num_processes=num_processes)
    if cfg.MODEL.DEVICE.startswith("cuda") and num_local_processes > torch.cuda.device_count():
        raise InputError(
            f"{num_local_processes} processes need a GPU each; torch sees {torch.cuda.device_count()} GPU(s) here"
        )
    notice = ""
    if cfg.MODEL.FALLBACK.CONFIG and not any(key.startswith("MODEL.BACKBONE.") for key in options[::2]):
        checkpoint = os.fspath(first.last_checkpoint or "") if resume else cfg.MODEL.WEIGHTS
        notice = fall_back(cfg, read_config(cfg.MODEL.FALLBACK.CONFIG), checkpoint=checkpoint)
    cfg.freeze()
    return cfg, notice


def build_own_config(path: str, options: Sequence[str] = ()) -> CfgNode:
    """``build_config`` for commands that need the two encoders of a MomentumReID.

    Raises:
        InputError: as for ``build_config``, or another meta-architecture.
    """
    cfg, _ = build_config(path, options)
    if not trains_without_labels(cfg):
        raise InputError(f"{path}: MODEL.META_ARCHITECTURE must be MomentumReID")
    return cfg


def build_trained_config(path: str, run: Path | None, options: Sequence[str] = ()) -> tuple[CfgNode, str]:
    """The config and the weights of an encoder, for commands that use it after training.

    Args:
        path: the config file, whose ``MODEL.WEIGHTS`` are the weights; not used with ``run``.
        run: the folder of a run, ``--run``: its own config and weights are used, those of its last stage that has any,
            the best if it was evaluated. It may have been moved since, to a machine without a GPU as well.
        options: keys and values that override both.

    Returns:
        The config of one stage, and the file of its weights; "" if ``options`` or the config file say so.

    Raises:
        InputError: as for ``build_own_config``, or a folder without a run or without weights.
    """
    if run is None:
        cfg = build_own_config(path, options)
        return Run(cfg).stages[-1].cfg, cfg.MODEL.WEIGHTS
    left = Run.read(run)
    stage = left.trained or left.stages[-1]
    if not stage.weights and "MODEL.WEIGHTS" not in options[::2]:
        raise InputError(f"--run {run}: no weights there yet; wait for its first checkpoint, or name MODEL.WEIGHTS")
    own = {"MODEL.WEIGHTS": repr(str(stage.weights or "")), "OUTPUT_DIR": repr(str(run))}
    if stage.cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        own["MODEL.DEVICE"] = "auto"
    cfg = build_own_config(str(left.config), [*(part for item in own.items() for part in item), *options])
    return Run(cfg).stages[left.stages.index(stage)].cfg, cfg.MODEL.WEIGHTS
