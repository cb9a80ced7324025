"""Checks of a config before anything is built or written."""

from __future__ import annotations

import os

import torch
from fastreid.config import CfgNode, get_cfg
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY

from ..clusterers import CLUSTERER_REGISTRY
from ..config import Run, lookup, value_of
from ..core.neighbors import METHODS
from ..data.views import crop_size
from ..errors import InputError
from ..losses import LOSS_REGISTRY, build_losses
from ..modeling import is_timm, trains_without_labels
from ..modeling.batch_norm import splits_per_process
from .hooks import HOOK_REGISTRY

POSITIVE = "must be at least 1", lambda value: value >= 1
FROM_ZERO = "must be at least 0", lambda value: value >= 0
ABOVE_ZERO = "must be above 0", lambda value: value > 0
SHARE = "must lie in [0, 1]", lambda value: 0 <= value <= 1
ENCODER = "must be 'online' or 'momentum'", lambda value: value in ("online", "momentum")
DISTANCE = "must be 'jaccard' or 'ca_jaccard'", lambda value: value in ("jaccard", "ca_jaccard")

RANGES = {
    "SEED": FROM_ZERO,
    "CLUSTER.EPS": ("must lie between 0 and 1, 0 excluded (a Jaccard distance)", lambda value: 0 < value <= 1),
    "CLUSTER.MIN_SAMPLES": POSITIVE,
    "CLUSTER.MIN_CLUSTER_SIZE": ("must be at least 2", lambda value: value >= 2),
    "CLUSTER.K1": ("must be at least 2", lambda value: value >= 2),
    "CLUSTER.K2": POSITIVE,
    "CLUSTER.NEIGHBORS": (
        f"must be one of {', '.join(METHODS)} ('cells' was called 'ivf')",
        lambda value: value in METHODS,
    ),
    "CLUSTER.DISTANCE": DISTANCE,
    "TEST.RERANK.DISTANCE": DISTANCE,
    "CLUSTER.NUM_CLUSTERS": ("must be at least 2", lambda value: value >= 2),
    "CLUSTER.PATIENCE": POSITIVE,
    "CLUSTER.FEATURES": ENCODER,
    "TEST.ENCODER": ENCODER,
    "TEST.IMS_PER_BATCH": POSITIVE,
    "TEST.PRECISE_BN.NUM_ITER": POSITIVE,
    "DATALOADER.NUM_INSTANCE": POSITIVE,
    "DATALOADER.NUM_WORKERS": FROM_ZERO,
    "DATALOADER.UNREADABLE": ("must be 'error' or 'skip'", lambda value: value in ("error", "skip")),
    "DATASETS.CHANGED": ("must be 'error' or 'relabel'", lambda value: value in ("error", "relabel")),
    "DATALOADER.CACHE": ("must be 'none' or 'ram'", lambda value: value in ("none", "ram")),
    "MODEL.BACKBONE.DROP_PATH": ("must be at least 0 and below 1", lambda value: 0 <= value < 1),
    "MODEL.START_FROM": ("must be 'last' or 'best'", lambda value: value in ("last", "best")),
    "MODEL.MOMENTUM.ALPHA": SHARE,
    "MODEL.LOSSES.CLUSTER_PROXY.TEMPERATURE": ABOVE_ZERO,
    "MODEL.LOSSES.CLUSTER_PROXY.LABEL_SMOOTHING": SHARE,
    "MODEL.LOSSES.CROSS_CAMERA.TEMPERATURE": ABOVE_ZERO,
    "MODEL.LOSSES.CROSS_CAMERA.NUM_NEGATIVES": POSITIVE,
    "MODEL.LOSSES.HARD_INSTANCE.TEMPERATURE": ABOVE_ZERO,
    "MODEL.LOSSES.SOFT_CONSISTENCY.TEMPERATURE": ABOVE_ZERO,
    "MODEL.LOSSES.DISCREPANT_PROXY.TEMPERATURE": ABOVE_ZERO,
    "MODEL.LOSSES.MULTI_INSTANCE.TEMPERATURE": ABOVE_ZERO,
    "MODEL.LOSSES.NEIGHBOR_LABEL.TEMPERATURE": ABOVE_ZERO,
    "MODEL.LOSSES.O2CAP.TEMPERATURE": ABOVE_ZERO,
    "INPUT.BLUR.PROB": SHARE,
    "INPUT.BLUR.SIGMA": (
        "must be two ascending numbers from 0",
        lambda value: len(value) == 2 and 0 <= value[0] <= value[1],
    ),
    "SOLVER.ITERS_PER_EPOCH": POSITIVE,
    "SOLVER.MAX_EPOCH": POSITIVE,
    "SOLVER.BASE_LR": ABOVE_ZERO,
    "SOLVER.OPT": (
        "must name an optimiser of torch.optim, such as Adam, AdamW or SGD",
        lambda value: isinstance(getattr(torch.optim, value, None), type),
    ),
    "SOLVER.SCHED": (
        "must be 'MultiStepLR' or 'CosineAnnealingLR'",
        lambda value: value in ("MultiStepLR", "CosineAnnealingLR"),
    ),
    "DATASETS.NAMES": ("must name a dataset", lambda value: len(value) > 0),
}


for node in ("CLUSTER", "TEST.RERANK"):
    RANGES |= {f"{node}.CA_JACCARD.{name}": POSITIVE for name in ("K1_INTRA", "K1_INTER", "K2_INTRA")}
    RANGES[f"{node}.CA_JACCARD.K2_INTER"] = FROM_ZERO

REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.HEADS.NAME": REID_HEADS_REGISTRY,
    "CLUSTER.NAME": CLUSTERER_REGISTRY,
}

# Keys that hold several names. Without this check, a wrong one in a later stage would be found when that stage starts.
SEVERAL = {
    "HOOKS": HOOK_REGISTRY,
    "DATASETS.NAMES": DATASET_REGISTRY,
    "DATASETS.TESTS": DATASET_REGISTRY,
}


def check_config(cfg: CfgNode, *, num_processes: int = 1) -> None:
    """Checks for values out of range, unknown names, missing files and impossible batches, in every stage.

    In a config for another meta-architecture only names and device are checked.

    Raises:
        InputError: one sentence about the first value that cannot work.
    """
    ours = trains_without_labels(cfg)
    if cfg.STAGES and not ours:
        raise InputError("STAGES needs MODEL.META_ARCHITECTURE MomentumReID; leave it empty for others")
    if cfg.DATASETS.ROOT and not ours:
        raise InputError(
            "DATASETS.ROOT needs MODEL.META_ARCHITECTURE MomentumReID; for others set the variable FASTREID_DATASETS"
        )
    if cfg.CORRECTIONS and not ours:
        raise InputError("CORRECTIONS needs MODEL.META_ARCHITECTURE MomentumReID; leave it empty for others")
    # The weights of later stages do not exist yet.
    if ours and cfg.MODEL.WEIGHTS and not os.path.isfile(cfg.MODEL.WEIGHTS):
        raise InputError(f"MODEL.WEIGHTS: no file {cfg.MODEL.WEIGHTS!r}")
    stages = Run(cfg).stages
    for number, stage in enumerate(stages, 1):
        try:
            _check_stage(stage.cfg, num_processes)
            if number > 1 and stage.cfg.MODEL.START_FROM == "best" and not stages[number - 2].evaluates:
                raise InputError(
                    "MODEL.START_FROM best: the stage before is not evaluated, so none of its epochs is the best; set "
                    "it to last, or DATASETS.TESTS and TEST.EVAL_PERIOD so that it is"
                )
        except InputError as error:
            if not cfg.STAGES:
                raise
            raise InputError(f"STAGES, stage {number}: {error}") from error


def _check_stage(cfg: CfgNode, num_processes: int) -> None:
    for key, registry in REGISTRIES.items():
        lookup(registry, value_of(cfg, key), key)
    _check_device(cfg)
    if not trains_without_labels(cfg):
        return
    for key, (rule, holds) in RANGES.items():
        value = value_of(cfg, key)
        if not holds(value):
            raise InputError(f"{key} {value!r} {rule}")
    for key, registry in SEVERAL.items():
        for name in value_of(cfg, key):
            lookup(registry, name, key)
    for key in ("SIZE_TRAIN", "SIZE_TEST"):
        crop_size(cfg, key)
    _check_loss_nodes(cfg)
    _check_batch(cfg, num_processes)
    splits_per_process(cfg, num_processes)
    build_losses(cfg)
    if is_timm(cfg):
        from ..modeling.timm_backbone import check_name  # importing timm takes a second

        check_name(cfg.MODEL.BACKBONE.DEPTH)
    backbone = cfg.MODEL.BACKBONE
    if backbone.PRETRAIN and backbone.PRETRAIN_PATH and not os.path.isfile(backbone.PRETRAIN_PATH):
        raise InputError(f"MODEL.BACKBONE.PRETRAIN_PATH: no file {backbone.PRETRAIN_PATH!r}")
    if cfg.TEST.RERANK.ENABLED and cfg.TEST.RERANK.DISTANCE == "ca_jaccard" and cfg.TEST.METRIC != "cosine":
        raise InputError(f"TEST.RERANK.DISTANCE ca_jaccard needs TEST.METRIC cosine, not {cfg.TEST.METRIC}")
    if cfg.TEST.CAMERA_NORM and cfg.TEST.METRIC != "cosine":
        raise InputError(f"TEST.CAMERA_NORM needs TEST.METRIC cosine, not {cfg.TEST.METRIC}")
    warmup_epochs = -(-cfg.SOLVER.WARMUP_ITERS // cfg.SOLVER.ITERS_PER_EPOCH)
    if cfg.SOLVER.SCHED == "CosineAnnealingLR" and max(warmup_epochs, cfg.SOLVER.DELAY_EPOCHS) >= cfg.SOLVER.MAX_EPOCH:
        raise InputError(
            "SOLVER.WARMUP_ITERS and SOLVER.DELAY_EPOCHS leave no epoch to CosineAnnealingLR; raise SOLVER.MAX_EPOCH"
        )


def _check_loss_nodes(cfg: CfgNode) -> None:
    """Refuses keys of ``MODEL.LOSSES`` that no loss reads. A config file may hold any, since losses bring their own."""
    nodes = sorted(cls.node for cls in LOSS_REGISTRY._obj_map.values())
    unknown = set(cfg.MODEL.LOSSES) - set(get_cfg().MODEL.LOSSES) - set(nodes)
    if unknown:
        raise InputError(f"MODEL.LOSSES.{min(unknown)} is read by no loss; the losses read {', '.join(nodes)}")


def _check_batch(cfg: CfgNode, num_processes: int) -> None:
    batch, instances = cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE
    if batch < 1 or batch % (instances * num_processes):
        raise InputError(
            f"SOLVER.IMS_PER_BATCH {batch} must be a multiple of DATALOADER.NUM_INSTANCE {instances} times "
            f"{num_processes} process(es), so that each gets complete groups of a pseudo identity"
        )


def _check_device(cfg: CfgNode) -> None:
    try:
        device = torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise InputError(f"MODEL.DEVICE {cfg.MODEL.DEVICE!r} is not a device; use auto, cuda or cpu") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("MODEL.DEVICE is cuda, but torch sees no GPU here; use MODEL.DEVICE cpu (or auto)")
