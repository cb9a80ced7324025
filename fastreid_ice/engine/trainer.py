"""fast-reid's DefaultTrainer on pseudo labels."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence

from fastreid.config import CfgNode
from fastreid.engine import DefaultTrainer
from fastreid.engine.train_loop import HookBase
from fastreid.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from ..config import InputError
from ..data import PseudoLabelLoader, build_feature_loader, build_test_loader, build_training_set, inspect_images
from ..losses import check_cameras, required_views
from .checkpoint import Checkpointer
from .hooks import build_hooks, sync_buffers, unwrap
from .summary import EpochTable, EvaluateStart

# What InputError says needs no traceback in the log.
logging.getLogger("fastreid.engine.train_loop").addFilter(
    lambda record: not (record.exc_info and isinstance(record.exc_info[1], InputError))
)


class UnsupervisedTrainer(DefaultTrainer):
    """DefaultTrainer with a loader that is relabelled every epoch, and the hooks that do so.

    Everything else is fast-reid's: its training loop, optimisers, schedules, evaluators, checkpoints and writers.

    Args:
        cfg: the config of one stage.
        first_hooks: hooks that run before all others.
    """

    def __init__(self, cfg: CfgNode, *, first_hooks: Sequence[HookBase] = ()) -> None:
        self.first_hooks = first_hooks
        super().__init__(cfg)
        self.feature_loader = build_feature_loader(self.cfg, self.data_loader.training_set)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> PseudoLabelLoader:
        images = build_training_set(cfg)
        check_cameras(cfg, images.cameras)
        if "UnlabeledFolder" in cfg.DATASETS.NAMES and comm.is_main_process():
            inspect_images(images.paths, unreadable=cfg.DATALOADER.UNREADABLE)
        return PseudoLabelLoader.from_config(cfg, images, required_views(cfg))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> tuple[DataLoader, int]:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """fast-reid's evaluation of the encoder that ``TEST.ENCODER`` names, on every dataset of ``DATASETS.TESTS``."""
        sync_buffers(unwrap(model))
        return super().test(cfg, model)

    def build_hooks(self) -> list[HookBase]:
        cfg = self.cfg
        own = build_hooks(cfg)
        # fast-reid has built its Checkpointer just before; ours also keeps what the hooks must not forget.
        stateful = {type(hook).__name__: hook for hook in own if hasattr(hook, "state_dict")}
        self.checkpointer = Checkpointer(
            self.model,
            cfg.OUTPUT_DIR,
            save_to_disk=comm.is_main_process(),
            optimizer=self.optimizer,
            **self.scheduler,
            **stateful,
        )
        evaluates = cfg.DATASETS.TESTS and cfg.TEST.EVAL_PERIOD >= 0
        start = [EvaluateStart()] if evaluates and cfg.TEST.BEFORE_TRAINING else []
        end = [EpochTable()] if comm.is_main_process() else []
        return [*self.first_hooks, *start, *own, *super().build_hooks(), *end]
