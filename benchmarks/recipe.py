"""One epoch of a recipe by the real trainer, part by part, and the time of the whole recipe at that rate."""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.utils.env import seed_all_rng
from fastreid.utils.events import EventStorage
from tabulate import tabulate
from torch import Tensor
from torch.autograd import DeviceType
from torch.nn.modules.batchnorm import _BatchNorm
from torch.profiler import ProfilerActivity

from fastreid_ice import InputError
from fastreid_ice.clusterers import build_clusterer
from fastreid_ice.config import Run
from fastreid_ice.core import Clusters
from fastreid_ice.data.views import crop_size
from fastreid_ice.engine import UnsupervisedTrainer, build_own_config, extract_features
from fastreid_ice.modeling import MomentumReID
from fastreid_ice.progress import progress

from .measuring import Clock, check_least, machine
from .recluster import K1

MARKET_IMAGES = 12936  # of Market-1501's training set
FIRST_STEPS = {"cpu": 2, "cuda": 20}  # not measured: a GPU first uses the batches prepared while it compiled
PROFILED_STEPS = 3
SMALL_SET = 1000  # images to warm up a clusterer's libraries
USER_SCOPE = 7  # at::RecordScope of record_function


@dataclass(frozen=True)
class Part:
    """One measured part of a recipe.

    Attributes:
        name: for the table.
        seconds: measured.
        times: how often the whole stage contains the measured part; not always a whole number.
        detail: whether it is contained in the part before, so that it is not added.
    """

    name: str
    seconds: float
    times: float
    detail: bool = False

    @property
    def whole(self) -> float:
        """Seconds in the whole stage."""
        return self.seconds * self.times


@dataclass(frozen=True)
class Stage:
    """A stage of a recipe: its schedule and its parts."""

    epochs: int
    steps: int
    parts: Sequence[Part]

    @property
    def whole(self) -> float:
        """Seconds."""
        return sum(part.whole for part in self.parts if not part.detail)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        default="configs/ice_market.yml",
        help="the recipe; default: configs/ice_market.yml",
    )
    parser.add_argument("--synthetic", action="store_true", help="draw people instead of the config's datasets")
    parser.add_argument(
        "--images",
        type=int,
        default=MARKET_IMAGES,
        help="training crops to draw, with as many for query and gallery as in Market-1501; default: 12936, as there",
    )
    parser.add_argument("--steps", type=int, default=20, help="training steps measured; default: 20")
    parser.add_argument("--profile", action="store_true", help="with the three largest costs of a training step")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes to the config")


def check(args: argparse.Namespace) -> None:
    check_least(args, images=K1, steps=1)


def run(args: argparse.Namespace) -> None:
    """Measure one stage after the other, and print the table."""
    if args.images != MARKET_IMAGES and not args.synthetic:
        raise InputError("--images is the number of crops to draw: it needs --synthetic")
    torch.set_num_threads(args.threads)
    log_to_stderr()
    with tempfile.TemporaryDirectory() as folder:
        cfg = build_config(args, folder)
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
        height, width = crop_size(cfg, "SIZE_TRAIN")
        data = f"{args.images} drawn crops" if args.synthetic else ", ".join(cfg.DATASETS.NAMES)
        precision = "mixed precision" if cfg.SOLVER.AMP.ENABLED else "float32"
        print(
            f"\n{args.config_file}: {data} at {height} x {width}, {cfg.SOLVER.IMS_PER_BATCH} in a batch, {precision}, "
            f"{'compiled' if cfg.MODEL.COMPILE else 'not compiled'}, cache {cfg.DATALOADER.CACHE}"
        )
        print(f"{date.today()}, {machine(args.threads, args.device)}\n", flush=True)
        stages = [measure(stage.cfg, args) for stage in Run(cfg).stages]
    print(table(stages) + "\n")
    print(f"the whole recipe: {sum(stage.whole for stage in stages) / 60:.1f} minutes, without checkpoints and report")
    if args.synthetic and args.images != MARKET_IMAGES:
        print(
            f"extrapolated from {args.images} to {MARKET_IMAGES} training crops in proportion, which is right for "
            "extracting many images; fixed costs, such as starting the workers, are less than in the table, and "
            "searching neighbours and ranking, which grow faster, take more"
        )


def log_to_stderr() -> None:
    """Send the log of fast-reid and the plugin, mainly progress, to stderr, without the network's layers."""
    logger = logging.getLogger("fastreid")
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler())
    logging.getLogger("fastreid.engine.defaults").setLevel(logging.WARNING)


def build_config(args: argparse.Namespace, folder: str) -> CfgNode:
    """The recipe as `fastreid-ice train` reads it, with random weights; it writes to ``folder``."""
    fixed = ["MODEL.DEVICE", args.device, "MODEL.WEIGHTS", "", "MODEL.BACKBONE.PRETRAIN", "False", "OUTPUT_DIR", folder]
    if args.synthetic:
        fixed += ["DATASETS.NAMES", "('SyntheticMarket',)", "DATASETS.TESTS", "('SyntheticMarket',)"]
        fixed += ["DATASETS.SYNTHETIC.IMAGES", str(args.images)]
    return build_own_config(args.config_file, [*args.opts, *fixed])


def measure(cfg: CfgNode, args: argparse.Namespace) -> Stage:
    """Measure the second epoch of a stage, up to ``args.steps`` steps."""
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    seed_all_rng(cfg.SEED)
    trainer = UnsupervisedTrainer(cfg)
    clock, first = Clock(args.device), FIRST_STEPS[args.device]
    trainer.epoch = 1
    trainer.iter = trainer.start_iter = trainer.iters_per_epoch
    with EventStorage(trainer.iter) as trainer.storage:
        trainer.before_train()
        with clock.stage("read"):
            batch = read_images(trainer)
        settle_statistics(trainer.model, batch["images"])
        start_clustering(trainer, batch)
        with clock.stage("recluster"):
            trainer.before_epoch()
        details = {
            name.removeprefix("seconds/"): history.latest()
            for name, history in trainer.storage.histories().items()
            if name.startswith("seconds/")
        }
        learn_identities(trainer, batch)
        with clock.stage("first steps"):
            train(trainer, first, "Taking the first steps")
        with clock.stage("train"):
            train(trainer, args.steps, "Training")
        if args.profile:
            print(profile(lambda: train(trainer, PROFILED_STEPS, "Profiling"), args.device) + "\n", flush=True)
        number = evaluations(cfg)
        if number:
            with clock.stage("evaluate"):
                trainer.evaluate()
    trainer.data_loader.close()

    seconds, epochs, steps = clock.seconds, cfg.SOLVER.MAX_EPOCH, cfg.SOLVER.ITERS_PER_EPOCH
    scale = MARKET_IMAGES / args.images if args.synthetic else 1.0
    beyond = max(seconds["first steps"] - first * seconds["train"] / args.steps, 0.0)
    parts = [
        *([Part("fill the cache", seconds["read"], scale)] if cfg.DATALOADER.CACHE == "ram" else []),
        Part("recluster", seconds["recluster"], scale * epochs),
        *(Part(name, value, scale * epochs, detail=True) for name, value in details.items()),
        Part(f"first {first} steps, beyond the others", beyond, 1),
        Part(f"train, {args.steps} steps", seconds["train"], epochs * steps / args.steps),
        *([Part("evaluate", seconds["evaluate"], scale * number)] if number else []),
    ]
    return Stage(epochs, steps, parts)


def read_images(trainer: UnsupervisedTrainer) -> dict[str, Tensor]:
    """Read each image once, as the first epoch does: workers start, a cache fills. Returns one batch."""
    batches = iter(progress(trainer.feature_loader, "Reading the images"))
    first = next(batches)
    for _ in batches:
        pass
    return first


def settle_statistics(model: MomentumReID, images: Tensor) -> None:
    """Give all batch norms the statistics of these images, regardless of the parts in which they see a batch.

    With the initial statistics, random weights make all features nearly the same, so that only a search in float64 can
    distinguish neighbours, which a training run does not need.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, getattr(norm, "num_splits", 1)) for norm in norms]
    model.eval()  # in training mode the networks may be compiled, for batches of another size
    for norm in norms:
        norm.train()
        norm.momentum, norm.num_splits = 1.0, 1
    with torch.no_grad():
        for encoder in ("online", "momentum"):
            model.encode(images, encoder)
    for norm, settings in zip(norms, before, strict=True):
        norm.momentum, norm.num_splits = settings
    model.train()


def start_clustering(trainer: UnsupervisedTrainer, batch: dict[str, Tensor]) -> None:
    """Load and compile the libraries of extraction and clustering, on one batch and on noise."""
    cfg, images = trainer.cfg, trainer.data_loader.training_set
    extract_features(trainer.model, [batch], cfg.CLUSTER.FEATURES, amp=cfg.SOLVER.AMP.ENABLED)
    known = images.known[:SMALL_SET]
    build_clusterer(cfg)(F.normalize(torch.randn(len(known), 128)), known)


def learn_identities(trainer: UnsupervisedTrainer, batch: dict[str, Tensor]) -> None:
    """Replace the clusters by true identities, if known: random weights find too many or too few clusters."""
    images = trainer.data_loader.training_set
    if (images.identities < 0).any():
        return
    with torch.no_grad():
        dim = trainer.model.eval()(batch["images"][:1]).shape[1]
    trainer.model.train()
    features = F.normalize(torch.randn(len(images), dim))
    columns = (images.identities, features, images.known, features)
    trainer.model.begin_epoch(Clusters(*(column.to(trainer.model.device) for column in columns)))
    trainer.data_loader.reset(images.identities, seed=0)


def train(trainer: UnsupervisedTrainer, steps: int, title: str) -> None:
    """The inner loop of fast-reid's trainer, with all hooks."""
    for _ in progress(range(steps), title):
        trainer.before_step()
        trainer.run_step()
        trainer.after_step()
        trainer.iter += 1


def evaluations(cfg: CfgNode) -> int:
    """How often a stage evaluates: at its start, every TEST.EVAL_PERIOD epochs, and at its end."""
    if not cfg.DATASETS.TESTS or cfg.TEST.EVAL_PERIOD < 0:
        return 0
    period = cfg.TEST.EVAL_PERIOD or cfg.SOLVER.MAX_EPOCH
    return cfg.TEST.BEFORE_TRAINING - (-cfg.SOLVER.MAX_EPOCH // period)


def profile(steps: Callable[[], None], device: str) -> str:
    """The three largest costs of ``PROFILED_STEPS`` steps, by operator on their device and by named range.

    The time of an operator excludes the operators that it calls. Ranges are those of ``record_function``, in host time
    including everything that they call: torch has some around the optimiser and around waiting for a loader.
    """
    on_gpu = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    clock = Clock(device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Profiler clears events")  # of earlier cycles; there are none
        with torch.profiler.profile(activities=activities) as profiler, clock.stage("steps"):
            steps()
    # Kernels are also separate events, already counted in the operators that launch them.
    events = [event for event in profiler.key_averages() if event.device_type == DeviceType.CPU]
    microseconds = 1e6 * clock.seconds["steps"]
    operators = {event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in events}
    ranges = {event.key: event.cpu_time_total for event in events if event.scope == USER_SCOPE}
    rows = [
        [name, cost / PROFILED_STEPS / 1000, f"{cost / microseconds:.1%}"]
        for costs in (operators, ranges)
        for name, cost in sorted(costs.items(), key=lambda item: -item[1])[:3]
    ]
    headers = ["largest costs: operators, then ranges", "ms per step", "share of the time"]
    busy = f"\nthe GPU is busy for {sum(operators.values()) / microseconds:.1%} of the time" if on_gpu else ""
    return tabulate(rows, headers, tablefmt="pipe", floatfmt=".2f") + busy


def table(stages: Sequence[Stage]) -> str:
    """A row per stage and part, in Markdown; shares are of the whole recipe."""
    recipe = sum(stage.whole for stage in stages)
    rows = []
    for number, stage in enumerate(stages, 1):
        title = f"stage {number}: " if len(stages) > 1 else ""
        title += f"{stage.epochs} epochs of {stage.steps} steps"
        rows.append([title, None, stage.whole / stage.epochs, stage.whole / 60, f"{stage.whole / recipe:.1%}"])
        for part in stage.parts:
            name = f"- {part.name}" if part.detail else part.name
            whole = part.whole
            rows.append([name, part.seconds, whole / stage.epochs, whole / 60, f"{whole / recipe:.1%}"])
    headers = ["", "seconds measured", "seconds per epoch", "minutes of the recipe", "share"]
    return tabulate(rows, headers, tablefmt="pipe", floatfmt=["", ".3f", ".3f", ".2f", ""])
