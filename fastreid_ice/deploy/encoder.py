"""The encoder of a trained run, as something that turns image files into features."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from fastreid.modeling import build_model
from PIL import Image

from ..config import Run, value_of
from ..core import ImageTable
from ..data import TrainingSet, build_feature_loader
from ..engine import Checkpointer, build_trained_config, extract_features
from ..errors import InputError
from ..modeling import MomentumReID

# The keys that features depend on, beside the weights.
SETTINGS = (
    "MODEL.BACKBONE",
    "MODEL.HEADS",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "INPUT.SIZE_TEST",
    "INPUT.CROP",
    "TEST.ENCODER",
    "TEST.FLIP",
)
START = ("PRETRAIN", "PRETRAIN_PATH")  # keys of MODEL.BACKBONE about weights that the checkpoint replaces
READ = 2**20  # bytes at a time


class Encoder:
    """The encoder that a run evaluates (``TEST.ENCODER``), with the run's own image size, normalisation and weights.

    Args:
        run: the folder of the run, its ``OUTPUT_DIR``.
        options: config keys and values that override those of the run. Device: a GPU if there is one, else the CPU.
        weights: the checkpoint; None for the one to use of the run's last stage that has any.

    Attributes:
        run: the run.
        cfg: the config of that stage, checked.
        options: as given.
        weights: the checkpoint, an absolute path.
        fingerprint: a hash of the checkpoint and of all keys that features depend on.

    Raises:
        InputError: no run, no weights, or options that do not fit.
    """

    def __init__(self, run: Path, options: Sequence[str] = (), *, weights: Path | None = None) -> None:
        self.run, self.options = Run.read(run), list(options)
        if weights and not weights.is_file():
            raise InputError(f"there are no weights {weights}")
        # Nothing is trained: no best epoch is looked for, and nothing is compiled.
        fixed = ["MODEL.START_FROM", "last", "MODEL.COMPILE", "False"]
        fixed += ["MODEL.WEIGHTS", repr(str(weights))] if weights else []
        self.cfg, found = build_trained_config("", run, ["MODEL.DEVICE", "auto", *options, *fixed])
        self.weights = Path(os.path.abspath(found))

    @cached_property
    def fingerprint(self) -> str:
        settings = {key: value_of(self.cfg, key) for key in SETTINGS}
        backbone = settings["MODEL.BACKBONE"]
        settings["MODEL.BACKBONE"] = {name: value for name, value in backbone.items() if name not in START}
        digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16)
        with self.weights.open("rb") as file:
            while part := file.read(READ):
                digest.update(part)
        return digest.hexdigest()

    @cached_property
    def model(self) -> MomentumReID:
        """With its weights, on the device of the config; read when it is first needed."""
        model = build_model(self.cfg)
        Checkpointer(model).load(str(self.weights))
        return model

    def encode(self, images: Sequence[str | Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        """Features of N images.

        Args:
            images: paths of files, or what ``Image.open`` gave for them, which has the same features.

        Returns:
            (N, D) float32 unit rows, and (N,) bool, False for an image that could not be read (its row is zero).

        Raises:
            InputError: the weights give features that are not finite.
        """
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.UNREADABLE, cfg.DATALOADER.CACHE = "skip", "none"
        if len(images) <= cfg.TEST.IMS_PER_BATCH:
            cfg.DATALOADER.NUM_WORKERS = 0  # a single batch is read sooner than processes start
        listed = TrainingSet(list(images), ImageTable(torch.full((len(images),), -1)))
        loader = build_feature_loader(cfg, listed)
        features, usable = extract_features(self.model, loader, cfg.TEST.ENCODER, flip=cfg.TEST.FLIP.ENABLED)
        if not features[usable].isfinite().all():
            raise InputError(f"{self.weights} gives features that are not finite: it holds NaN or infinity")
        return features.numpy(), usable.numpy()
