"""Trains, resumes or evaluates what a config file describes, with fast-reid's options.

fastreid-ice train --config-file configs/ice_demo.yml SOLVER.MAX_EPOCH 3 OUTPUT_DIR logs/short
fastreid-ice train --config-file configs/ice_folder.yml DATASETS.ROOT path/to/crops
fastreid-ice train --config-file configs/ice_market.yml --num-gpus 4
fastreid-ice train --config-file configs/ice_market.yml --resume
fastreid-ice train --config-file configs/ice_market.yml --eval-only MODEL.WEIGHTS logs/ice_market/model_best.pth

A config that is not found in the current folder is the one that comes with the package: configs/ice_market.yml is found
anywhere. Data sets lie in the folder that the variable FASTREID_DATASETS names (default: datasets); those of the demo
are drawn there. Log, metrics, checkpoints and report.html go to OUTPUT_DIR. Options come before keys and values. On a
CPU --num-gpus is the number of processes.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from fastreid.config import CfgNode, get_cfg
from fastreid.engine import DefaultTrainer, default_argument_parser, default_setup
from fastreid.utils import comm
from fastreid.utils.env import seed_all_rng

from ..config import add_ice_config, import_files, merge_config_file, merge_options, shipped_file
from ..data import existing_tests
from ..engine import Checkpointer, UnsupervisedTrainer, check_config, fall_back, launch, stage_configs, train_stages
from ..engine.launch import ProcessFailed
from ..engine.log import filtering, log_any_name
from ..engine.stages import without_keys
from ..errors import InputError
from ..files import make_folder, owned_folder
from ..reporting import write_left_report


def setup(args: argparse.Namespace) -> CfgNode:
    """The whole config, checked before anything is written."""
    args.config_file = shipped_file(args.config_file)  # fast-reid logs it
    cfg = read_config(args.config_file, args.opts)
    import_files(cfg.IMPORTS)
    cfg.DATASETS.TESTS = existing_tests(cfg)
    if args.eval_only and not cfg.DATASETS.TESTS:
        raise InputError("--eval-only: nothing to evaluate; DATASETS.TESTS must name a dataset with a test set")
    if cfg.MODEL.DEVICE == "auto":
        cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    if args.resume or (cfg.MODEL.WEIGHTS and (args.eval_only or cfg.MODEL.META_ARCHITECTURE == "MomentumReID")):
        # They replace the whole backbone.
        cfg.MODEL.BACKBONE.PRETRAIN = False
    if args.resume and not last_checkpoint(cfg):
        first = stage_configs(cfg)[0].OUTPUT_DIR
        raise InputError(f"--resume: {first!r} (OUTPUT_DIR) holds no checkpoint; train without --resume first")
    check_config(cfg, num_processes=args.num_gpus * args.num_machines)
    if cfg.MODEL.DEVICE.startswith("cuda") and args.num_gpus > torch.cuda.device_count():
        raise InputError(f"--num-gpus {args.num_gpus}: torch sees {torch.cuda.device_count()} GPU(s) here")
    args.notice = ""
    if cfg.MODEL.FALLBACK.CONFIG and not any(key.startswith("MODEL.BACKBONE.") for key in args.opts[::2]):
        other = read_config(shipped_file(cfg.MODEL.FALLBACK.CONFIG))
        args.notice = fall_back(cfg, other, checkpoint=last_checkpoint(cfg) if args.resume else cfg.MODEL.WEIGHTS)
    cfg.freeze()
    return cfg


def read_config(path: str, options: Sequence[str] = ()) -> CfgNode:
    """The config of a file, or the default one for "", under the keys and values of ``options``."""
    cfg = get_cfg()
    add_ice_config(cfg)
    if path:
        merge_config_file(cfg, path)
    merge_options(cfg, options)
    cfg.STAGES = without_keys(cfg.STAGES or (), options[::2])  # a bare `STAGES:` is None
    cfg.MODEL.WEIGHTS = shipped_file(cfg.MODEL.WEIGHTS)
    return cfg


def last_checkpoint(cfg: CfgNode) -> str:
    """That of the first stage, or "" where a run has none."""
    marker = Path(stage_configs(cfg)[0].OUTPUT_DIR, "last_checkpoint")
    return str(marker.with_name(marker.read_text().strip())) if marker.is_file() else ""


def way_on(args: argparse.Namespace, cfg: CfgNode) -> str:
    """What to do about a run that was interrupted."""
    if not args.eval_only and last_checkpoint(cfg):
        return "the same command with --resume goes on from the last checkpoint"
    return "nothing was saved that it could go on from: start it again"


def run_process(args: argparse.Namespace, cfg: CfgNode) -> dict | None:
    """What each process of a run does."""
    # An evaluation may run beside the training that it looks at.
    if args.eval_only:
        make_folder(cfg.OUTPUT_DIR)
        return run(args, cfg)
    with owned_folder(cfg.OUTPUT_DIR):
        return run(args, cfg)


def run(args: argparse.Namespace, cfg: CfgNode) -> dict | None:
    with filtering("fastreid.utils.env", lambda record: False):  # it announces a random seed, which SEED replaces
        default_setup(cfg, args)
    log_any_name()
    if args.notice and comm.is_main_process():
        logging.getLogger("fastreid.start").warning(args.notice)
    seed_all_rng(cfg.SEED)
    import_files(cfg.IMPORTS)  # in every process of the run
    # Labelled training, as for the weights of a source domain, is fast-reid's own.
    ours = cfg.MODEL.META_ARCHITECTURE == "MomentumReID"
    trainer_class = UnsupervisedTrainer if ours else DefaultTrainer
    if args.eval_only:
        last = stage_configs(cfg)[-1]
        model = trainer_class.build_model(last)
        Checkpointer(model).load(cfg.MODEL.WEIGHTS)
        return trainer_class.test(last, model)
    if ours:
        return train_stages(cfg, resume=args.resume)
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def start(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Runs ``run_process`` in all processes of this machine."""
    try:
        launch(
            run_process,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args, cfg),
            backend="gloo" if cfg.MODEL.DEVICE == "cpu" else None,
        )
    except (KeyboardInterrupt, InputError, ProcessFailed):
        # The first process may have been ended for another one, or with all of them, before it could report.
        if args.num_gpus > 1 and args.machine_rank == 0 and not args.eval_only:
            write_left_report(stage_configs(cfg), Path(cfg.OUTPUT_DIR))
        raise


def main(arguments: Sequence[str] | None = None) -> None:
    parser = default_argument_parser()
    parser.prog = "fastreid-ice train"
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.set_defaults(dist_url="auto")  # fast-reid's default is one fixed port for all runs of a user
    args = parser.parse_args(arguments)
    try:
        cfg = setup(args)
        try:
            start(args, cfg)
        except KeyboardInterrupt:
            sys.stderr.write(f"interrupted; {way_on(args, cfg)}\n")
            sys.exit(130)  # as a shell reports SIGINT
    except InputError as error:
        sys.exit(f"error: {error}")
    except ProcessFailed as error:
        sys.stderr.write(error.traceback)
        sys.exit(f"error: {error}; {way_on(args, cfg)}")
