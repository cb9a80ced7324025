"""Batch-norm statistics for clustering and evaluation, against those of one large batch and of plain loops."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fastreid.config import CfgNode
from fastreid.engine.train_loop import HookBase
from fastreid.utils import comm
from torch import Tensor, nn

from fastreid_ice.data import build_feature_loader, build_training_set
from fastreid_ice.engine import HOOK_REGISTRY, UnsupervisedTrainer
from fastreid_ice.engine.hooks import unwrap
from fastreid_ice.engine.precise_bn import update_statistics
from fastreid_ice.engine.trainer import Tests
from fastreid_ice.testing import in_processes
from support import train

BATCHES = [[3, 50, 8, 20], [1, 30, 44, 12], [53, 0, 9, 31]]


def build_model(cfg: CfgNode) -> nn.Module:
    torch.manual_seed(0)
    return UnsupervisedTrainer.build_model(cfg).train()


def statistics(model: nn.Module, part: str = "") -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.named_buffers() if "running" in name and name.startswith(part)}


@pytest.mark.parametrize("splits", [1, 4])
def test_the_mean_over_batches(cfg: CfgNode, splits: int) -> None:
    """A part of two images would see less variance than the batch; the other encoder keeps its statistics."""
    cfg.MODEL.BN_SPLITS = splits
    model, images = build_model(cfg), build_training_set(cfg)
    model.backbone.train(False)
    modes = [module.training for module in model.modules()]
    before = statistics(model)
    loader = build_feature_loader(cfg, images, BATCHES)
    assert update_statistics(model, loader, ["momentum"])
    after = statistics(model)
    assert [module.training for module in model.modules()] == modes
    assert all(layer.momentum == 0.1 for layer in model.modules() if isinstance(layer, nn.BatchNorm2d))
    for name, value in before.items():
        assert torch.equal(value, after[name]) != name.startswith("momentum."), name

    # The same by torch alone: a layer with momentum 1 holds the statistics of its last batch.
    cfg.MODEL.BN_SPLITS = 1
    plain = build_model(cfg)
    for layer in plain.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.momentum = 1.0
    seen = []
    for batch in loader:
        plain.encode(batch["images"], "momentum")
        seen.append(statistics(plain, "momentum."))
    for name in seen[0]:
        expected = torch.stack([found[name] for found in seen]).mean(dim=0)
        torch.testing.assert_close(after[name], expected, rtol=1e-5, atol=1e-6, msg=name)


def test_unreadable_images_are_left_out(cfg: CfgNode, tmp_path: Path) -> None:
    cfg.DATALOADER.UNREADABLE = "skip"
    model, images = build_model(cfg), build_training_set(cfg)
    update_statistics(model, build_feature_loader(cfg, images, [[3, 50, 8]]), ["online"])
    expected = statistics(model)
    images.paths[20] = str(tmp_path / "gone.jpg")
    update_statistics(model, build_feature_loader(cfg, images, [[3, 50, 8, 20]]), ["online"])
    for name, value in statistics(model).items():
        torch.testing.assert_close(value, expected[name])


def test_an_encoder_without_batch_norm(cfg: CfgNode) -> None:
    cfg.MODEL.BACKBONE.DEPTH = "test_vit"
    model = build_model(cfg)
    loader = build_feature_loader(cfg, build_training_set(cfg), BATCHES)
    assert not [name for name in statistics(model) if "backbone" in name]
    assert update_statistics(model, loader, ["online"]) == 1, "that of the head"


class Statistics(HookBase):
    """Records the statistics at the end of the run, in each process."""

    def __init__(self, cfg: CfgNode) -> None:
        self.file = Path(cfg.OUTPUT_DIR) / f"rank{comm.get_rank()}.pt"

    def after_train(self) -> None:
        torch.save(statistics(unwrap(self.trainer.model), "momentum."), self.file)


class TestTraining:
    @pytest.fixture
    def precise(self, cfg: CfgNode) -> CfgNode:
        cfg.TEST.PRECISE_BN.ENABLED, cfg.TEST.PRECISE_BN.NUM_ITER = True, 2
        cfg.TEST.PRECISE_BN.DATASET = "fast-reid reads a labelled dataset of this name"
        return cfg

    def test_every_evaluation_and_checkpoint_uses_them(self, precise: CfgNode, monkeypatch) -> None:
        updates = []
        found = UnsupervisedTrainer.test

        def evaluate(cfg: CfgNode, model: nn.Module, tests: Tests) -> dict:
            updates.append(statistics(model, "momentum."))
            return found(cfg, model, tests)

        monkeypatch.setattr(UnsupervisedTrainer, "test", staticmethod(evaluate))
        train(precise)
        start, first, _ = updates
        assert all(torch.equal(value, torch.zeros_like(value)) for name, value in start.items() if "mean" in name), (
            "the start is evaluated as it is"
        )
        saved = torch.load(Path(precise.OUTPUT_DIR, "model_0000.pth"), weights_only=True)["model"]
        for name, value in first.items():
            assert torch.equal(saved[name], value), "the epoch is saved as it was evaluated"

    def test_the_next_clustering_uses_them(self, precise: CfgNode) -> None:
        labels = []
        for precise.TEST.PRECISE_BN.ENABLED in (True, False):
            hooks = train(precise)._hooks
            labels.append(next(hook.labels for hook in hooks if hasattr(hook, "labels")))
        assert not torch.equal(*labels)

    def test_a_resumed_run_equals_the_whole(self, precise: CfgNode, tmp_path: Path) -> None:
        whole = train(precise)
        records = Path(precise.OUTPUT_DIR, "metrics.json").read_text().splitlines()
        precise.OUTPUT_DIR = str(tmp_path / "resumed")
        precise.SOLVER.MAX_EPOCH = 1
        train(precise)
        precise.SOLVER.MAX_EPOCH = 2
        resumed = train(precise, resume=True)
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, resumed.model.state_dict()[name]), name
        last = json.loads(Path(precise.OUTPUT_DIR, "metrics.json").read_text().splitlines()[-1])
        assert last["mAP"] == json.loads(records[-1])["mAP"]

    @pytest.mark.slow
    def test_two_processes_agree(self, precise: CfgNode) -> None:
        """Each takes whole batches, so with weights that hardly move both equal one process."""
        precise.HOOKS = ("Statistics",)
        precise.SOLVER.BASE_LR, precise.SOLVER.MAX_EPOCH = 1e-12, 1
        Path(precise.OUTPUT_DIR).mkdir()
        in_processes(run_training, 2, precise)
        first, second = (torch.load(Path(precise.OUTPUT_DIR, f"rank{rank}.pt")) for rank in (0, 1))
        precise.HOOKS = ()
        for name, value in statistics(train(precise).model, "momentum.").items():
            assert torch.equal(first[name], second[name]), name
            torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5, msg=name)


def run_training(cfg: CfgNode) -> None:
    HOOK_REGISTRY.register(Statistics)
    train(cfg)
