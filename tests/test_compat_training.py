"""fast-reid's own trainer on the CPU: train, evaluate, checkpoint, resume."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest
import torch

import fastreid_ice  # noqa: F401  applies the patches
from tiny_market import draw_tiny_market, tiny_config

ALL_OPTIONS = """
    SOLVER.AMP.ENABLED True SOLVER.CLIP_GRADIENTS.ENABLED True SOLVER.FREEZE_ITERS 3 MODEL.FREEZE_LAYERS ['backbone']
    MODEL.LOSSES.NAME ('CrossEntropyLoss','TripletLoss','CircleLoss') DATALOADER.SAMPLER_TRAIN BalancedIdentitySampler
    INPUT.AFFINE.ENABLED True INPUT.CJ.ENABLED True INPUT.REA.ENABLED True INPUT.AUGMIX.ENABLED True
    TEST.PRECISE_BN.ENABLED True TEST.PRECISE_BN.NUM_ITER 1 TEST.FLIP.ENABLED True TEST.METRIC euclidean
    TEST.AQE.ENABLED True TEST.AQE.QE_K 2 TEST.RERANK.ENABLED True TEST.RERANK.K1 4 TEST.RERANK.K2 2
    TEST.ROC.ENABLED True
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr("fastreid.data.build._root", str(draw_tiny_market(tmp_path / "data")))
    return tiny_config(tmp_path / "logs")


def metrics(cfg):
    with open(f"{cfg.OUTPUT_DIR}/metrics.json") as file:
        return [json.loads(line) for line in file]


def test_default_trainer_from_start_to_resume(config, tmp_path):
    from fastreid.engine import DefaultTrainer, default_setup

    default_setup(config, SimpleNamespace(eval_only=False))
    trainer = DefaultTrainer(config)
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    results = trainer.train()
    unchanged = {name for name, p in trainer.model.named_parameters() if p.equal(before[name])}
    assert not [name for name in unchanged if ".gate.fc" not in name]  # a gate of one ReLU can be dead
    assert 0 < results["mAP"] <= 100
    assert [line["mAP"] for line in metrics(config) if "mAP" in line][-1] == results["mAP"]
    assert {path.name for path in (tmp_path / "logs").glob("*.pth")} == {
        "model_best.pth",
        "model_0000.pth",
        "model_final.pth",
    }

    # Finished: nothing is left to train, and the same weights give the same metrics.
    finished = DefaultTrainer(config)
    finished.resume_or_load(resume=True)
    assert finished.train() == results

    config.SOLVER.MAX_EPOCH = 3
    resumed = DefaultTrainer(config)
    resumed.resume_or_load(resume=True)
    assert resumed.start_epoch == 2
    saved = torch.load(tmp_path / "logs" / "model_final.pth")["optimizer"]["state"]
    assert all(int(state["step"]) == 4 for state in saved.values())
    resumed.train()
    assert max(line["iteration"] for line in metrics(config)) == 5

    # Only evaluation, of the weights in a file.
    config.MODEL.WEIGHTS = str(tmp_path / "logs" / "model_best.pth")
    model = DefaultTrainer.build_model(DefaultTrainer.auto_scale_hyperparams(config, 4))
    from fastreid.utils.checkpoint import Checkpointer

    Checkpointer(model).load(config.MODEL.WEIGHTS)
    best = max(line["metric"] for line in metrics(config) if "metric" in line)
    assert DefaultTrainer.test(config, model)["metric"] == pytest.approx(best)


def test_all_options_at_once(config, caplog, monkeypatch):
    """AMP, gradient clipping, frozen layers, precise batch norm, flip, query expansion, re-ranking, ROC."""
    from fastreid.engine import DefaultTrainer

    config.merge_from_list(ALL_OPTIONS.split())
    monkeypatch.setattr(logging.getLogger("fastreid.compat"), "handlers", [caplog.handler])
    trainer = DefaultTrainer(config)
    frozen = []
    step = trainer.run_step

    def run_step():
        frozen.append(not trainer.model.backbone.training)
        step()

    trainer.run_step = run_step
    assert 0 < trainer.train()["mAP"] <= 100
    # Still frozen in the third iteration, which follows an evaluation, and not in the fourth.
    assert frozen == [True, True, True, False]
    assert "training in mixed precision" in caplog.text or "training in full precision" in caplog.text
