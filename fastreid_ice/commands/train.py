"""Trains, resumes or evaluates a model as a config file describes, with fast-reid's options.

fastreid-ice train --config-file configs/ice_demo.yml SOLVER.MAX_EPOCH 3 OUTPUT_DIR logs/short
fastreid-ice train --config-file configs/ice_folder.yml DATASETS.ROOT path/to/crops
fastreid-ice train --config-file configs/ice_market.yml --num-gpus 4
torchrun --nproc-per-node 4 tools/train_net.py --config-file configs/ice_market.yml
fastreid-ice train --config-file configs/ice_market.yml --resume
fastreid-ice train --config-file configs/ice_market.yml --eval-only MODEL.WEIGHTS logs/ice_market/model_best.pth

A config that is not found in the current folder is taken from the package: configs/ice_market.yml is found anywhere.
Datasets are in the folder that the variable FASTREID_DATASETS names (default: datasets); those of the demo are drawn
there. Log, metrics, checkpoints and report.html go to OUTPUT_DIR. Options come before keys and values.

--num-gpus starts that many processes under torchrun's agent, also on a CPU; torchrun itself starts them on one or
several machines. Machines need no common disk, but each needs the images: the first process reads config, weights and
checkpoints, sends them to the others, and writes all files.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch.distributed as dist
from fastreid.config import CfgNode
from fastreid.engine import DefaultTrainer, default_argument_parser, default_setup
from fastreid.utils import comm
from fastreid.utils.env import seed_all_rng

from ..config import Run, import_files, shipped_file
from ..engine import Checkpointer, UnsupervisedTrainer, build_config, train_stages
from ..engine.log import filtering, log_any_name, start_log
from ..engine.stages import is_of_this_run
from ..errors import InputError
from ..files import make_folder, owned_folder
from ..modeling import trains_without_labels
from ..processes import in_each, is_in_group, of_first, process_group, run_in_group
from ..reporting import write_left_report
from .agent import ProcessFailed, run_processes

logger = logging.getLogger(f"fastreid.{__name__}")


def setup(args: argparse.Namespace) -> CfgNode:
    """The whole config, checked before anything is written; the first warning for the log goes to ``args.notice``."""
    args.config_file = shipped_file(args.config_file)  # fast-reid logs it
    cfg, args.notice = build_config(
        args.config_file,
        args.opts,
        resume=args.resume,
        eval_only=args.eval_only,
        num_processes=int(os.environ.get("WORLD_SIZE", args.num_gpus * args.num_machines)),
        num_local_processes=int(os.environ.get("LOCAL_WORLD_SIZE", args.num_gpus)),
    )
    return cfg


def way_on(args: argparse.Namespace, cfg: CfgNode) -> str:
    """How to continue a run that was interrupted."""
    if not args.eval_only and Run(cfg).stages[0].last_checkpoint:
        return "the same command with --resume continues from the last checkpoint"
    return "nothing was saved to continue from; start it again"


def run_process(args: argparse.Namespace, cfg: CfgNode) -> dict | None:
    """What each process of a run does."""
    # An evaluation may run while the training whose weights it reads is still running.
    with nullcontext() if args.eval_only else owned_folder(cfg.OUTPUT_DIR):
        in_each(lambda: make_folder(cfg.OUTPUT_DIR))
        restarts = max(comm.all_gather(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))))
        args.resume = of_first(lambda: args.resume or (restarts > 0 and is_of_this_run(Run(cfg))))
        return run(args, cfg, restarts)


def run(args: argparse.Namespace, cfg: CfgNode, restarts: int = 0) -> dict | None:
    if not comm.is_main_process():
        args.config_file = ""  # fast-reid would log it, and only the first machine may have it
    with filtering("fastreid.utils.env", lambda record: False):  # it announces a random seed, which SEED replaces
        start_log(lambda: default_setup(cfg, args))
    log_any_name()
    if comm.is_main_process() and args.notice:
        logging.getLogger("fastreid.start").warning(args.notice)
    if restarts:
        from_where = "the last checkpoint" if args.resume else "the start, since there is no checkpoint yet"
        logger.warning("Restart %d after a process was lost; the run continues from %s", restarts, from_where)
    seed_all_rng(cfg.SEED)
    in_each(lambda: import_files(cfg.IMPORTS))
    # Training with labels, as for the weights of a source domain, is fast-reid's own.
    ours = trains_without_labels(cfg)
    trainer_class = UnsupervisedTrainer if ours else DefaultTrainer
    if args.eval_only:
        last = Run(cfg).stages[-1].cfg
        model = trainer_class.build_model(last)
        Checkpointer(model).load(cfg.MODEL.WEIGHTS)
        return trainer_class.test(last, model)
    if ours:
        return train_stages(cfg, resume=args.resume)
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def work(args: argparse.Namespace, store: dist.Store | None = None) -> None:
    """Runs in a single process, or in one of several that meet in ``store``.

    Raises:
        KeyboardInterrupt: its message says how to continue.
    """
    cfg = of_first(lambda: setup(args), store)
    backend = "gloo" if cfg.MODEL.DEVICE == "cpu" or not dist.is_nccl_available() else "nccl"
    try:
        with process_group(store, backend) if store else nullcontext():
            run_process(args, cfg)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {way_on(args, cfg)}") from None


def start_processes(args: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Runs this command in all processes of this machine."""
    cfg = setup(args)
    try:
        run_processes(
            ["-m", "fastreid_ice.commands", "train", *arguments],
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            max_restarts=args.max_restarts,
        )
    except BaseException as error:
        # The first process may have been ended because of another one, or with all of them, before it wrote the report.
        if args.machine_rank == 0 and not args.eval_only:
            write_left_report(Run(cfg))
        if isinstance(error, ProcessFailed):
            sys.stderr.write(error.traceback)
            sys.exit(f"error: {error}; {way_on(args, cfg)}")
        if isinstance(error, KeyboardInterrupt):
            sys.exit(128 + signal.SIGINT)  # the first process has reported it
        raise


def build_parser() -> argparse.ArgumentParser:
    """fast-reid's options, and one more."""
    parser = default_argument_parser()
    parser.prog = "fastreid-ice train"
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.set_defaults(dist_url="auto")  # fast-reid's default is one fixed port for all runs of a user
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        help="how often the processes of --num-gpus are started again, from the last checkpoint, when one is lost",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    args = build_parser().parse_args(arguments)
    try:
        if is_in_group(args.num_machines):
            run_in_group(partial(work, args))
        elif args.num_gpus == args.num_machines == 1:
            work(args)
        else:
            start_processes(args, arguments)
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as error:
        sys.stderr.write(f"{str(error) or 'interrupted'}\n")
        sys.exit(128 + signal.SIGINT)
