"""One training step of camera-aware ICE, compared with the schedule of the published code."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from datetime import date
from functools import cached_property
from itertools import repeat
from pathlib import Path

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, get_cfg
from fastreid.engine.train_loop import AMPTrainer, SimpleTrainer
from fastreid.modeling.meta_arch import build_model
from fastreid.solver import build_optimizer
from fastreid.utils.events import EventStorage
from tabulate import tabulate
from torch import Tensor

from fastreid_ice import add_ice_config
from fastreid_ice.compat.training import mixed_precision
from fastreid_ice.core import Clusters, ImageTable
from fastreid_ice.engine.loss_log import LossLog
from fastreid_ice.losses import Step
from fastreid_ice.modeling import MomentumReID
from fastreid_ice.progress import progress

from .measuring import Clock, check_least, machine

NETWORKS = {"resnet18": ("18x", 512), "resnet50": ("50x", 2048)}
PRECISIONS = ("fp32", "amp")
PUBLISHED = "published schedule"
CAMERAS, INSTANCES = 6, 4
BACKWARD = 2  # forward passes that a backward one costs
STEPS = {"cpu": 1, "cuda": 10}  # timed together: a GPU works while the host prepares the next step
CONFIG = Path(__file__).resolve().parent.parent / "configs" / "ice_market.yml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", choices=NETWORKS, default="resnet50", help="the backbone; default: resnet50")
    parser.add_argument("--batch", type=int, default=16, help="images, four of each identity; default: 16")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(256, 128), metavar=("HEIGHT", "WIDTH"), help="pixels; default: 256 128"
    )
    parser.add_argument(
        "--clusters", type=int, default=700, help="proxies to learn from, times six cameras; default: 700"
    )
    parser.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="of our step; default: all"
    )
    parser.add_argument("--compile", action="store_true", help="our step with torch.compile as well, in a few minutes")
    parser.add_argument("--repeats", type=int, default=5, help="how often each is measured; default: 5")


def check(args: argparse.Namespace) -> None:
    check_least(args, batch=8, size=32, clusters=2, repeats=1)


def config(network: str, size: tuple[int, int], device: str) -> CfgNode:
    """The recipe, with random weights."""
    cfg = get_cfg()
    add_ice_config(cfg)
    cfg.merge_from_file(str(CONFIG))
    depth, dim = NETWORKS[network]
    cfg.MODEL.BACKBONE.DEPTH, cfg.MODEL.BACKBONE.FEAT_DIM, cfg.MODEL.BACKBONE.PRETRAIN = depth, dim, False
    cfg.MODEL.BN_SPLITS = 1  # the share of one process, in both schedules
    cfg.MODEL.DEVICE = device
    cfg.INPUT.SIZE_TRAIN = list(size)
    return cfg


def draw_clusters(count: int, dim: int, device: str) -> Clusters:
    """``count`` clusters, each with one image under every camera."""
    labels = torch.arange(count).repeat_interleave(CAMERAS)
    centres = torch.randn(count, dim, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(len(labels), dim, generator=torch.Generator().manual_seed(1))
    features = F.normalize(centres[labels] + noise)
    cameras = torch.arange(len(labels), device=device) % CAMERAS
    return Clusters(labels.to(device), features.to(device), ImageTable(cameras))


def draw_batch(size: int, height: int, width: int, clusters: int) -> dict[str, Tensor]:
    """Noise in three views, on the host."""
    generator = torch.Generator().manual_seed(2)
    views = ("online", "momentum", "momentum_weak")
    batch = {view: 255 * torch.rand(size, 3, height, width, generator=generator) for view in views}
    rows = torch.arange(size)
    batch |= {"targets": rows // INSTANCES % clusters, "camids": rows % CAMERAS, "indices": rows}
    return {name: value.pin_memory() if torch.cuda.is_available() else value for name, value in batch.items()}


class Ours:
    """The step of ``UnsupervisedTrainer``, without loading."""

    def __init__(self, cfg: CfgNode, batch: dict[str, Tensor], clusters: Clusters, *, amp: bool) -> None:
        torch.manual_seed(0)
        self.batch = batch
        self.model: MomentumReID = build_model(cfg).train()
        self.model.begin_epoch(clusters)
        optimizer, _ = build_optimizer(cfg, self.model)
        self.trainer = (AMPTrainer if amp else SimpleTrainer)(self.model, repeat(batch), optimizer, None)
        self.trainer._write_metrics = self.record
        self.storage, self.log = EventStorage(), LossLog()

    @property
    def passes(self) -> int:
        """Through the networks, those that only collect batch-norm statistics (``online_view``) included."""
        return len(self.model.views) + self.model.online_view + BACKWARD

    def record(self, losses: dict[str, Tensor], data_time: float) -> None:
        self.log.add(self.storage.iter, losses, data_time)
        self.log.store(self.storage, wait=False)

    def step(self) -> None:
        self.trainer.run_step()
        self.model.after_step()
        self.storage.step()

    def parts(self, clock: Clock) -> None:
        """Everything in a step except networks and optimiser, on the features of a step."""
        online, first, second = self.features
        columns = (self.batch[name].to(online.device) for name in ("targets", "camids", "indices"))
        step = Step(*columns, online.clone().requires_grad_(), first, second)
        with clock.stage("losses"):
            losses = {name: term(step) for name, term in self.model.losses.items()}
            sum(losses.values()).backward()
        with clock.stage("logging"):
            self.record(losses, 0.0)
            self.storage.step()
        self.model._step = step
        with clock.stage("momentum encoder, memories"):
            self.model.after_step()

    @cached_property
    def features(self) -> list[Tensor]:
        with torch.no_grad():
            views = ("online", "momentum", "momentum_weak")
            return [self.model.encode(self.batch[view], view.partition("_")[0]) for view in views]


class Published:
    """The schedule of the published code, reimplemented from its description: the same losses, sample by sample.

    Five forward passes, the outputs of two of which are not used; parameters averaged one by one, in the default memory
    layout; and every loss read from the device.
    """

    passes = 5 + BACKWARD

    def __init__(self, cfg: CfgNode, batch: dict[str, Tensor], clusters: Clusters) -> None:
        torch.manual_seed(0)
        self.batch = batch
        # Built as ours, so that weights and proxies are the same.
        self.model: MomentumReID = build_model(cfg).train().to(memory_format=torch.contiguous_format)
        self.model.begin_epoch(clusters)
        self.proxies = self.model.losses["loss_cluster_proxy"].proxies
        self.camera_proxies = self.model.losses["loss_cross_camera"].proxies
        self.proxy_labels = self.model.losses["loss_cross_camera"].proxy_labels
        self.optimizer, _ = build_optimizer(cfg, self.model)
        self.last: list[float] = []

    def step(self) -> None:
        batch = {name: value.to(self.model.device, non_blocking=True) for name, value in self.batch.items()}
        first, second, weak = (
            (batch[view] - self.model.pixel_mean) / self.model.pixel_std
            for view in ("online", "momentum", "momentum_weak")
        )
        backbone, heads, momentum = self.model.backbone, self.model.heads, self.model.momentum
        queries = heads(backbone(first))
        heads(backbone(second))
        with torch.no_grad():
            momentum["heads"](momentum["backbone"](first))
            keys = momentum["heads"](momentum["backbone"](second))
            weak_keys = momentum["heads"](momentum["backbone"](weak))
        losses = [
            F.cross_entropy(queries @ self.proxies.T / 0.5, batch["targets"], label_smoothing=0.1),
            0.5 * self.cross_camera(queries, batch["targets"], batch["camids"]),
            self.hard_instance(queries, keys, batch["targets"]),
            10 * self.soft_consistency(queries, keys, weak_keys),
        ]
        self.optimizer.zero_grad()
        sum(losses).backward()
        self.optimizer.step()
        with torch.no_grad():
            for average, parameter in (
                *zip(momentum["backbone"].parameters(), backbone.parameters(), strict=True),
                *zip(momentum["heads"].parameters(), heads.parameters(), strict=True),
            ):
                average.mul_(0.999).add_(parameter, alpha=0.001)
        self.last = [loss.item() for loss in losses]

    def cross_camera(self, queries: Tensor, labels: Tensor, cameras: Tensor) -> Tensor:
        similarities = F.normalize(queries) @ self.camera_proxies.T / 0.07
        total = queries.new_zeros(())
        for camera in cameras.unique():
            rows = (cameras == camera).nonzero()[:, 0]
            for i in rows:
                own = self.proxy_labels == labels[i]
                positives, others = similarities[i][own], similarities[i][~own]
                logits = torch.cat((positives, others.sort(descending=True).values[:50]))
                target = torch.zeros_like(logits)
                target[: len(positives)] = 1 / len(positives)
                total = total - (target * F.log_softmax(logits, 0)).sum() / len(rows)
        return total

    def hard_instance(self, queries: Tensor, keys: Tensor, labels: Tensor) -> Tensor:
        similarities = F.normalize(queries) @ F.normalize(keys).T / 0.1
        total = queries.new_zeros(())
        for i, row in enumerate(similarities):
            same = labels == labels[i]
            logits = torch.cat((row[same].min()[None], row[~same]))
            total = total - F.log_softmax(logits, 0)[0]
        return total / len(queries)

    def soft_consistency(self, queries: Tensor, keys: Tensor, weak_keys: Tensor) -> Tensor:
        weak_keys = F.normalize(weak_keys)
        prediction = F.log_softmax(F.normalize(queries) @ F.normalize(keys).T / 0.4, 1)
        return F.kl_div(prediction, F.softmax(weak_keys @ weak_keys.T / 0.4, 1), reduction="batchmean")


def run(args: argparse.Namespace) -> None:
    """Measure all schedules in turn in this process, and print the table."""
    torch.set_num_threads(args.threads)
    height, width = args.size
    cfg = config(args.network, (height, width), args.device)
    kind = mixed_precision(torch.device(args.device))
    print(f"{args.network}, {args.batch} images of {height} x {width}, {args.clusters} clusters, on {args.device}")
    print(f"median of {args.repeats}, {date.today()}, {machine(args.threads, args.device)}\n", flush=True)

    clusters = draw_clusters(args.clusters, cfg.MODEL.BACKBONE.FEAT_DIM, args.device)
    batch = draw_batch(args.batch, height, width, args.clusters)
    schedules: dict[str, Ours | Published] = {PUBLISHED: Published(cfg, batch, clusters)}
    for compiled in (False, True) if args.compile else (False,):
        for precision in args.precision:
            name = {"fp32": "ours", "amp": f"ours, {str(kind).removeprefix('torch.')}"}[precision]
            if precision == "amp" and kind is None:
                print("This CPU has no bfloat16, so it would be slower than float32: left out\n")
                continue
            cfg.MODEL.COMPILE = compiled
            name += ", compiled" if compiled else ""
            schedules[name] = Ours(cfg, batch, clusters, amp=precision == "amp")

    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in schedules}
    for _, name, schedule in progress(list(_turns(schedules, args.repeats)), "Measuring"):
        seconds[name].append(measure(schedule, args.device))
    for runs in seconds.values():
        del runs[0]  # the first turn warms up, and compiles
    print(table(seconds) + "\n")
    reference = _median(seconds[PUBLISHED], "step")
    for name, runs in seconds.items():
        if name != PUBLISHED:
            passes = schedules[name].passes / Published.passes
            step, *parts = (_median(runs, part) for part in runs[0])
            print(
                f"{name}: {step / reference:.3f} of the published schedule (the passes alone: {passes:.3f}); "
                f"{sum(parts) / step:.1%} of it is neither network nor optimiser"
            )


def _turns(schedules: dict[str, Ours | Published], repeats: int) -> Iterator[tuple[int, str, Ours | Published]]:
    for turn in range(repeats + 1):
        for name, schedule in schedules.items():
            yield turn, name, schedule


def measure(schedule: Ours | Published, device: str) -> dict[str, float]:
    """Seconds of a step, then of its parts except network and optimiser."""
    clock, steps = Clock(device), STEPS[device]
    with clock.stage("step"):
        for _ in range(steps):
            schedule.step()
    seconds = {"step": clock.seconds.pop("step") / steps}
    if isinstance(schedule, Ours):
        schedule.parts(clock)
    return seconds | clock.seconds


def _median(runs: list[dict[str, float]], part: str) -> float:
    return statistics.median(run[part] for run in runs)


def table(seconds: dict[str, list[dict[str, float]]]) -> str:
    """A row per schedule and part, in Markdown; ratios are between the medians."""
    reference = _median(seconds[PUBLISHED], "step")
    rows = []
    for name, runs in seconds.items():
        for part in runs[0]:
            values = [run[part] for run in runs]
            title = name if part == "step" else f"- {part}"
            rows.append([title, _median(runs, part), min(values), max(values), _median(runs, part) / reference])
    headers = ["", "seconds", "fastest", "slowest", "ratio to published"]
    return tabulate(rows, headers, tablefmt="pipe", floatfmt=["", ".4f", ".4f", ".4f", ".3f"])
