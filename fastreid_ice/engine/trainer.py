"""fast-reid's DefaultTrainer for pseudo labels."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence

import torch.distributed as dist
from fastreid.config import CfgNode
from fastreid.engine import DefaultTrainer
from fastreid.engine.hooks import EvalHook, PeriodicCheckpointer
from fastreid.engine.train_loop import HookBase
from fastreid.utils import comm
from fastreid.utils.events import EventWriter
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..clusterers import check_tracks
from ..config import Stage
from ..data import (
    PseudoLabelLoader,
    build_feature_loader,
    build_test_loader,
    build_training_set,
    crop_size,
    has_unchecked_images,
    inspect_images,
)
from ..errors import InputError
from ..losses import check_cameras, required_views
from ..modeling import ENCODERS
from ..processes import in_each
from ..reporting import first_test_set
from .best import EvaluateEpochs
from .checkpoint import Checkpointer, SaveEpochs
from .clock import EpochClock
from .evaluator import BlockedReidEvaluator, evaluate_encoders
from .hooks import build_hooks, sync_buffers, unwrap
from .log import filtering, for_people
from .loss_log import LossLog, NotFinite
from .precise_bn import PreciseBN
from .summary import EpochTable, EvaluateStart
from .writers import LOG_PERIOD, ScalarWriter

logger = logging.getLogger(f"fastreid.{__name__}")

Tests = dict[str, tuple[DataLoader, BlockedReidEvaluator]]  # by the name of the dataset


class UnsupervisedTrainer(DefaultTrainer):
    """DefaultTrainer with a loader that is relabelled every epoch, and the hooks that relabel it.

    Everything else is fast-reid's: its training loop, optimisers, schedules, evaluators, checkpoints and writers. A run
    that is killed, interrupted or stopped by an error at any moment can be resumed from its last checkpoint.

    Args:
        cfg: the config of one stage.
        first_hooks: hooks that run before all others.
        last_hooks: hooks that run after all others.
    """

    def __init__(
        self, cfg: CfgNode, *, first_hooks: Sequence[HookBase] = (), last_hooks: Sequence[HookBase] = ()
    ) -> None:
        self.first_hooks = first_hooks
        self.last_hooks = last_hooks
        super().__init__(cfg)
        self._tests: Tests = {}
        self.feature_loader = build_feature_loader(self.cfg, self.data_loader.training_set)
        self._losses = LossLog()
        self._trainer._write_metrics = self._write_metrics

    def train(self) -> OrderedDict | None:
        """Like fast-reid's; in the main process returns the last results, None if nothing was evaluated.

        Raises:
            InputError: a loss is not finite, a file cannot be written, or an image cannot be read.
        """
        self.checkpointer.tidy(resumed=self.start_epoch > 0)
        with filtering("fastreid.engine.train_loop", for_people):
            return super().train()

    def after_step(self) -> None:
        # The host waits for a GPU only when the losses are written, and before evaluation and checkpoint.
        done = self.iter + 1
        if done % LOG_PERIOD == 0 or done % self.iters_per_epoch == 0:
            self._store_losses(wait=True)
        super().after_step()

    def _write_metrics(self, losses: dict[str, Tensor], data_time: float) -> None:
        """Replaces fast-reid's; called between a step's backward pass and its update of the weights."""
        self._losses.add(self.iter, losses, data_time)
        self._store_losses(wait=False)

    def _store_losses(self, *, wait: bool) -> None:
        try:
            self._losses.store(self.storage, wait=wait)
        except NotFinite as error:
            raise InputError(
                f"{error} (epoch {error.iteration // self.iters_per_epoch + 1}): "
                f"training stops; lower SOLVER.BASE_LR; {self.checkpointer.what_is_left()}"
            ) from error

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Like fast-reid's; only the first process reads pretrained weights, and all get the weights of the first."""
        if not comm.is_main_process():
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.BACKBONE.PRETRAIN = False
        model = super().build_model(cfg)
        if comm.get_world_size() > 1:
            for value in model.state_dict().values():
                dist.broadcast(value, src=0)
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> PseudoLabelLoader:
        images = in_each(lambda: build_training_set(cfg))
        check_cameras(cfg, images.cameras)
        if cfg.CLUSTER.TRACKS:
            check_tracks(images.known)
        _check_batch(cfg, len(images))
        if has_unchecked_images(cfg) and comm.is_main_process():
            size = crop_size(cfg, "SIZE_TRAIN")
            inspect_images(images.paths, unreadable=cfg.DATALOADER.UNREADABLE, size=size)
        return PseudoLabelLoader.from_config(cfg, images, required_views(cfg))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> tuple[DataLoader, int]:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_dir: str | None = None
    ) -> tuple[DataLoader, BlockedReidEvaluator]:
        loader, num_query = cls.build_test_loader(cfg, dataset_name)
        return loader, BlockedReidEvaluator(cfg, num_query, output_dir)

    def evaluate(self) -> OrderedDict:
        """``test`` of the model in training; test images are listed, and with ``DATALOADER.CACHE`` decoded, once."""
        return self.test(self.cfg, self.model, self._tests)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, tests: Tests | None = None) -> OrderedDict:
        """Evaluates the encoder under test, or both (``TEST.BOTH_ENCODERS``), on every dataset of ``DATASETS.TESTS``.

        Args:
            tests: what earlier calls built, to be used again; what is missing is added.

        Returns:
            Name -> value as from ``evaluate_encoders``; with several datasets, dataset -> name -> value.
        """
        model = unwrap(model)
        sync_buffers(model)
        others = [encoder for encoder in ENCODERS if cfg.TEST.BOTH_ENCODERS and encoder != model.test_encoder]
        options = {"amp": cfg.SOLVER.AMP.ENABLED, "flip": cfg.TEST.FLIP.ENABLED}
        tests = {} if tests is None else tests
        results = OrderedDict()
        for name in cfg.DATASETS.TESTS:
            if name not in tests:
                tests[name] = cls.build_evaluator(cfg, name)
            encoders = [model.test_encoder, *others]
            results[name] = evaluate_encoders(model, *tests[name], encoders, dataset=name, **options)
        return next(iter(results.values())) if len(results) == 1 else results

    def build_hooks(self) -> list[HookBase]:
        cfg = self.cfg
        own = build_hooks(cfg)
        precise_bn = [PreciseBN(cfg)] if cfg.TEST.PRECISE_BN.ENABLED else []
        start, evaluation = [], []
        if Stage(cfg).evaluates:
            start = [EvaluateStart()] if cfg.TEST.BEFORE_TRAINING else []
            evaluation = [EvaluateEpochs(cfg.TEST.EVAL_PERIOD, first_test_set(cfg))]
        # fast-reid has just built its Checkpointer; ours also saves the state of the hooks.
        stateful = {type(hook).__name__: hook for hook in [*own, *evaluation] if hasattr(hook, "state_dict")}
        if cfg.SOLVER.AMP.ENABLED and self._trainer.grad_scaler.is_enabled():  # for float16
            stateful["grad_scaler"] = self._trainer.grad_scaler
        self.checkpointer = Checkpointer(
            self.model,
            cfg.OUTPUT_DIR,
            save_to_disk=comm.is_main_process(),
            optimizer=self.optimizer,
            **self.scheduler,
            **stateful,
        )
        # Instead of fast-reid's evaluation and checkpoints, in an order in which a saved epoch is complete.
        saving = (
            [EpochClock(), ScalarWriter(), SaveEpochs(cfg.SOLVER.CHECKPOINT_PERIOD)] if comm.is_main_process() else []
        )
        theirs = []
        for hook in self._hooks_of_fastreid():
            if isinstance(hook, EvalHook):
                theirs += [*evaluation, *saving]
            elif not isinstance(hook, PeriodicCheckpointer):
                theirs.append(hook)
        end = [EpochTable()] if comm.is_main_process() else []
        return [*self.first_hooks, *start, *precise_bn, *own, *theirs, *end, *self.last_hooks]

    def _hooks_of_fastreid(self) -> list[HookBase]:
        """Without its PreciseBN, which draws batches by the labels of a dataset."""
        own, self.cfg = self.cfg, self.cfg.clone()
        self.cfg.defrost()
        self.cfg.TEST.PRECISE_BN.ENABLED = False
        try:
            return super().build_hooks()
        finally:
            self.cfg = own

    def build_writers(self) -> list[EventWriter]:
        """Further writers: ``ScalarWriter`` opens fast-reid's own once it is known where training continues."""
        return []


def _check_batch(cfg: CfgNode, images: int) -> None:
    """Refuses a batch of more pseudo identities than possible, and warns if images must recur within every batch.

    Raises:
        InputError: see above; without this check, memory would run out first.
    """
    batch, instances = cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE
    if batch > images * instances:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH {batch} takes {batch // instances} pseudo identities, and the {images} training "
            f"images give at most {images}; lower it to at most {images * instances}"
        )
    if batch > images:
        logger.warning(
            "SOLVER.IMS_PER_BATCH %d is more than the %d training images: they recur within a batch", batch, images
        )
