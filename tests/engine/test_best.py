"""Evaluation during training: of one encoder or both, and which weights are kept as the best."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from fastreid.config import CfgNode
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.engine.train_loop import HookBase
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from torch import Tensor, nn

from fastreid_ice import InputError
from fastreid_ice.config import Run, Stage
from fastreid_ice.data import SyntheticPeople, crops
from fastreid_ice.engine import Checkpointer, UnsupervisedTrainer, check_config, features, train_stages
from fastreid_ice.engine.hooks import HOOK_REGISTRY
from fastreid_ice.reporting import describe_evaluations, read_stage
from support import train


class Stopped(Exception):
    pass


class RandomWeights(HookBase):
    """Makes the best epoch random."""

    def __init__(self, cfg: CfgNode) -> None:
        pass

    def after_step(self) -> None:
        for parameter in self.trainer.model.parameters():
            parameter.data.normal_()


def build_one_layer(cfg: CfgNode) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 7, 4), nn.BatchNorm2d(16), nn.ReLU())


@pytest.fixture(autouse=True)
def small(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that take a second."""
    monkeypatch.setitem(BACKBONE_REGISTRY._obj_map, "build_one_layer", build_one_layer)
    monkeypatch.setitem(HOOK_REGISTRY._obj_map, "RandomWeights", RandomWeights)
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_one_layer", "MODEL.BACKBONE.FEAT_DIM", 16])
    cfg.merge_from_list(["TEST.BEFORE_TRAINING", False, "SOLVER.MAX_EPOCH", 5])


def scalars(cfg: CfgNode) -> list[dict[str, float]]:
    """The scalars of each evaluation in metrics.json."""
    lines = [json.loads(line) for line in Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()]
    metrics = re.compile("iteration|best/epoch|.*(mAP|mINP|Rank-.*|metric)")
    return [{name: line[name] for name in line if metrics.fullmatch(name)} for line in lines if "best/epoch" in line]


def best(cfg: CfgNode) -> dict:
    return torch.load(Path(cfg.OUTPUT_DIR, "model_best.pth"), weights_only=True)


def evaluate(cfg: CfgNode, state: dict) -> dict[str, float]:
    model = UnsupervisedTrainer.build_model(cfg)
    model.load_state_dict(state["model"])
    return UnsupervisedTrainer.test(cfg, model)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


class TestBest:
    @pytest.mark.parametrize("periods", [(3, 2), (2, 1), (5, 3), (1, 0), (0, 2)])
    def test_it_is_the_best_of_all_evaluations(self, cfg: CfgNode, periods: tuple[int, int]) -> None:
        """For any periods of checkpoints and evaluations."""
        cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD = periods
        cfg.HOOKS = (*cfg.HOOKS, "RandomWeights")
        train(cfg)
        period = periods[1] or 5
        lines = scalars(cfg)
        assert [line["iteration"] // 2 + 1 for line in lines] == sorted({*range(period, 6, period), 5})
        chosen = max(lines, key=lambda line: line["metric"])
        kept = best(cfg)
        assert kept["epoch"] == chosen["iteration"] // 2 and kept["metric"] == chosen["metric"]
        assert evaluate(cfg, kept)["metric"] == pytest.approx(chosen["metric"]), "its own weights"
        for done, line in enumerate(lines, 1):
            so_far = max(lines[:done], key=lambda line: line["metric"])
            assert line["best/epoch"] == so_far["iteration"] // 2 + 1
            assert all(line[f"best/{name}"] == so_far[name] for name in ("mAP", "Rank-1", "metric"))

    def test_a_checkpoint_names_no_metric_of_another_epoch(self, cfg: CfgNode) -> None:
        cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD = 3, 2
        train(cfg)
        state = torch.load(Path(cfg.OUTPUT_DIR, "model_0002.pth"), weights_only=True)
        assert state["epoch"] == 2 and "metric" not in state

    @pytest.mark.parametrize("stop", ["model_best", "model_0001", "model_0003", "model_final"])
    def test_a_resumed_run_keeps_it(self, cfg: CfgNode, tmp_path: Path, monkeypatch, stop: str) -> None:
        """Stopped before a checkpoint is saved, once after the first best, with different periods."""
        cfg.SOLVER.CHECKPOINT_PERIOD = 2
        cfg.HOOKS = (*cfg.HOOKS, "RandomWeights")
        cfg.OUTPUT_DIR = str(tmp_path / "whole")
        train(cfg)
        expected, figures = best(cfg), scalars(cfg)
        cfg.OUTPUT_DIR = str(tmp_path / "parts")
        save = Checkpointer.save

        def save_some(self: Checkpointer, name: str, **kwargs: object) -> None:
            if name == stop and kwargs["epoch"] > 0:
                raise Stopped
            save(self, name, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(Checkpointer, "save", save_some)
            try:
                train(cfg)
            except Stopped:
                pass
            else:
                assert stop == "model_best", "the first is the best"
        train(cfg, resume=True)
        found = best(cfg)
        assert_equal(found["model"], expected["model"])
        assert (found["epoch"], found["metric"]) == (expected["epoch"], expected["metric"])
        assert scalars(cfg) == figures

    def test_that_of_an_earlier_run_never_wins(self, cfg: CfgNode) -> None:
        """Started again in the same folder, and stopped before the first evaluation."""
        cfg.SOLVER.MAX_EPOCH = 3
        train(cfg)
        path = Path(cfg.OUTPUT_DIR, "model_best.pth")
        torch.save(best(cfg) | {"metric": 99.0}, path)
        cfg.SEED, cfg.TEST.EVAL_PERIOD = 1, 3
        stopped = UnsupervisedTrainer(cfg)
        stopped.resume_or_load(resume=False)
        stopped._hooks[-1].before_epoch = lambda: stop_at(stopped, 2)
        with pytest.raises(Stopped):
            stopped.train()
        assert not path.exists()
        train(cfg, resume=True)
        (line,) = scalars(cfg)
        assert best(cfg)["metric"] == line["metric"] and best(cfg)["epoch"] == 2

    def test_a_kill_before_the_last_evaluation(self, cfg: CfgNode, monkeypatch) -> None:
        """A run is complete, so that a later stage can start from it, only when its last epoch has been evaluated."""
        cfg.TEST.EVAL_PERIOD = 0
        with monkeypatch.context() as patched, pytest.raises(Stopped):
            patched.setattr(UnsupervisedTrainer, "test", stop)
            train(cfg)
        assert not Path(cfg.OUTPUT_DIR, "model_final.pth").exists()
        train(cfg, resume=True)
        assert best(cfg)["epoch"] == 4


def stop(*args: object) -> None:
    raise Stopped


def stop_at(trainer: UnsupervisedTrainer, epoch: int) -> None:
    if trainer.epoch == epoch:
        raise Stopped


class TestEncoders:
    @pytest.fixture
    def model(self, cfg: CfgNode) -> nn.Module:
        """Its encoders differ."""
        torch.manual_seed(0)
        model = UnsupervisedTrainer.build_model(cfg)
        for parameter in model.momentum.parameters():
            parameter.data.add_(0.5 * torch.randn_like(parameter))
        return model

    def test_both_in_one_pass(self, cfg: CfgNode, model: nn.Module, monkeypatch) -> None:
        expected = {}
        for encoder in ("online", "momentum"):
            model.test_encoder = encoder
            expected[encoder] = UnsupervisedTrainer.test(cfg, model)
        assert expected["online"]["mAP"] != expected["momentum"]["mAP"]
        read = []
        read_image = crops.read_image
        monkeypatch.setattr(crops, "read_image", lambda path: read.append(path) or read_image(path))
        cfg.TEST.BOTH_ENCODERS = True
        found = UnsupervisedTrainer.test(cfg, model)
        loader, _ = UnsupervisedTrainer.build_test_loader(cfg, "SyntheticPeople")
        assert len(read) == len(set(read)) == len(loader.dataset)
        assert found == expected["momentum"] | {f"online/{name}": value for name, value in expected["online"].items()}

    def test_log_metrics_table_and_report_show_both(self, cfg: CfgNode, caplog) -> None:
        cfg.TEST.BOTH_ENCODERS = cfg.TEST.BEFORE_TRAINING = True
        cfg.SOLVER.MAX_EPOCH = 2
        Path(cfg.OUTPUT_DIR).mkdir()
        with caplog.at_level("INFO"):
            train_stages(cfg)
        line = scalars(cfg)[-1]
        names = ("mAP", "Rank-1", "online/mAP", "online/Rank-1")
        assert all(math.isfinite(line[prefix + name]) for name in names for prefix in ("", "best/"))
        messages = [record.getMessage() for record in caplog.records]
        tables = [message for message in messages if message.startswith("Evaluation:")]
        assert len(tables) == 3
        for encoder, prefix in (("momentum", ""), ("online", "online/")):
            (row,) = (row for row in tables[-1].splitlines() if row.startswith(f"| SyntheticPeople, {encoder}"))
            assert row.split("|")[5].strip() == f"{line[f'{prefix}mAP']:.2f}"
        (table,) = (message.splitlines() for message in messages if message.startswith("Epochs:"))
        assert "mAP    rank-1    online mAP    online rank-1" in table[1]
        assert table[-1].split()[-4:] == [f"{line[name]:.1f}" for name in names]
        assert [len(row.split()) for row in table[3:]] == [5, 8, 8]
        (summary,) = (message for message in messages if message.startswith("Last evaluation"))
        assert f"Last evaluation, epoch 2: momentum mAP {line['mAP']:.1f}, rank-1 {line['Rank-1']:.1f}, " in summary
        assert f"online mAP {line['online/mAP']:.1f}, rank-1 {line['online/Rank-1']:.1f}" in summary
        assert f"Best evaluation, epoch {line['best/epoch']:.0f}: momentum mAP {line['best/mAP']:.1f}" in summary
        assert "The best is chosen on the test set" in summary
        page = Path(cfg.OUTPUT_DIR, "report.html").read_text()
        assert summary in page and "online/mAP" in page
        for name in ("last", "best"):
            assert f"<dt>{name} mAP</dt>" in page

    def test_the_other_encoder_chooses_nothing(self, cfg: CfgNode) -> None:
        """Weights and metrics of the encoder under test are those of a run that evaluates only this one."""
        train(cfg)
        expected, figures = best(cfg), scalars(cfg)
        cfg.TEST.BOTH_ENCODERS = True
        cfg.OUTPUT_DIR += "_both"
        train(cfg)
        assert_equal(best(cfg)["model"], expected["model"])
        assert [{name: line[name] for name in figures[0]} for line in scalars(cfg)] == figures

    def test_the_first_of_several_test_sets_chooses(self, cfg: CfgNode, monkeypatch) -> None:
        monkeypatch.setitem(DATASET_REGISTRY._obj_map, "SamePeople", SyntheticPeople)
        cfg.DATASETS.TESTS = ("SamePeople", "SyntheticPeople")
        cfg.TEST.BOTH_ENCODERS = True
        cfg.HOOKS = (*cfg.HOOKS, "RandomWeights")
        train(cfg)
        lines = scalars(cfg)
        chosen = max(lines, key=lambda line: line["SamePeople/metric"])
        assert best(cfg)["metric"] == chosen["SamePeople/metric"]
        for name in ("SamePeople/mAP", "SamePeople/online/mAP", "SyntheticPeople/online/mAP"):
            assert lines[-1][f"best/{name}"] == chosen[name]
        summary = describe_evaluations(read_stage(Stage(cfg)), "momentum")
        expected = f"Best evaluation, epoch {chosen['iteration'] // 2 + 1}: momentum mAP {chosen['SamePeople/mAP']:.1f}"
        assert expected in summary

    @pytest.mark.parametrize("amp", [False, True])
    def test_runs_in_the_precision_of_extraction(self, cfg: CfgNode, model: nn.Module, monkeypatch, amp: bool) -> None:
        monkeypatch.setattr(features, "mixed_precision", lambda device: torch.bfloat16)
        seen = set()
        model.momentum["backbone"][0].register_forward_hook(lambda *parts: seen.add(parts[-1].dtype))
        cfg.SOLVER.AMP.ENABLED = amp
        UnsupervisedTrainer.test(cfg, model)
        assert seen == {torch.bfloat16 if amp else torch.float32}


class TestStartFrom:
    def test_words(self, cfg: CfgNode) -> None:
        cfg.MODEL.START_FROM = "first"
        with pytest.raises(InputError, match="MODEL.START_FROM 'first' must be 'last' or 'best'"):
            check_config(cfg)

    @pytest.mark.parametrize("key", ["DATASETS.TESTS", "TEST.EVAL_PERIOD"])
    def test_there_is_no_best_without_evaluation(self, cfg: CfgNode, key: str) -> None:
        cfg.STAGES = ({"MODEL": {"START_FROM": "last"}}, {"MODEL": {"START_FROM": "best"}})
        check_config(cfg)
        cfg.merge_from_list([key, () if key == "DATASETS.TESTS" else -1])
        with pytest.raises(InputError, match="stage 2: MODEL.START_FROM best: the stage before is not evaluated"):
            check_config(cfg)

    @pytest.mark.parametrize("start_from", ["last", "best"])
    def test_stages_start_from_it(self, cfg: CfgNode, caplog, start_from: str) -> None:
        cfg.HOOKS = (*cfg.HOOKS, "RandomWeights")
        cfg.SOLVER.MAX_EPOCH = 3
        cfg.STAGES = ({}, {"MODEL": {"START_FROM": start_from}, "SOLVER": {"MAX_EPOCH": 1}})
        with caplog.at_level("INFO"):
            train_stages(cfg)
        first, second = Run(cfg).stages
        name = {"last": "model_final.pth", "best": "model_best.pth"}[start_from]
        state = torch.load(first.folder / name, weights_only=True)["model"]
        start = torch.load(second.cfg.MODEL.WEIGHTS, weights_only=True)["model"]
        assert_equal(start, {key: state[f"momentum.{key}"] for key in start})
        (line,) = (text for text in caplog.messages if text.startswith("Both encoders start from the momentum encoder"))
        assert f"stage1/{name}" in line and ("chosen on the test set" in line) == (start_from == "best")
        lines = [text for text in caplog.messages if text.startswith("Result of stage ")]
        assert [line[:36] for line in lines] == [f"Result of stage {number}: Last evaluation, " for number in (1, 2)]
