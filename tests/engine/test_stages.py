"""Stages: their configs, the weights passed on, and that an interruption in any of them changes nothing."""

from __future__ import annotations

import gc
import json
import multiprocessing
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from fastreid.config import CfgNode, get_cfg
from fastreid.engine.train_loop import HookBase
from torch import Tensor

from fastreid_ice import InputError, add_ice_config
from fastreid_ice.config import Run, without_keys
from fastreid_ice.data import CropCache
from fastreid_ice.engine import HOOK_REGISTRY, UnsupervisedTrainer, check_config, train_stages
from fastreid_ice.engine.stages import encoder_weights, is_complete
from support import train

# DCMIP, whose memories draw instances at random, which a resumed run must repeat.
TWO_STAGES = (
    {"MODEL": {"LOSSES": {"NAME": ["DiscrepantProxyLoss"]}}, "SOLVER": {"MAX_EPOCH": 2}},
    {"MODEL": {"LOSSES": {"NAME": ["DiscrepantProxyLoss", "MultiInstanceLoss"]}}, "SOLVER": {"MAX_EPOCH": 3}},
)


def stage_configs(cfg: CfgNode) -> list[CfgNode]:
    return [stage.cfg for stage in Run(cfg).stages]


class Interrupted(Exception):
    pass


def weights(path: str | Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)["model"]


def scalars(folder: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def interrupt(monkeypatch: pytest.MonkeyPatch, cfg: CfgNode, *, stage: int, epoch: int, resume: bool = False) -> None:
    """Trains until the first step of an epoch, both counted from 0."""
    folder = stage_configs(cfg)[stage].OUTPUT_DIR

    def run_step(trainer: UnsupervisedTrainer) -> None:
        if folder == trainer.cfg.OUTPUT_DIR and trainer.epoch == epoch:
            raise Interrupted
        super(UnsupervisedTrainer, trainer).run_step()

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(UnsupervisedTrainer, "run_step", run_step)
        train_stages(cfg, resume=resume)


class TestConfigs:
    def test_no_stages_leave_the_config_as_it_is(self, cfg: CfgNode) -> None:
        assert stage_configs(cfg) == [cfg]

    def test_one_stage_writes_where_the_config_says(self, cfg: CfgNode) -> None:
        cfg.STAGES = TWO_STAGES[:1]
        (stage,) = stage_configs(cfg)
        assert stage.OUTPUT_DIR == cfg.OUTPUT_DIR and stage.MODEL.WEIGHTS == cfg.MODEL.WEIGHTS
        assert stage.MODEL.LOSSES.NAME == ("DiscrepantProxyLoss",)

    def test_overlays(self, cfg: CfgNode) -> None:
        cfg.STAGES = TWO_STAGES
        before = cfg.clone()
        cfg.freeze()
        first, second = stage_configs(cfg)
        assert cfg == before, "the config itself is unchanged"
        assert first.MODEL.LOSSES.NAME == ("DiscrepantProxyLoss",) and first.SOLVER.MAX_EPOCH == 2
        assert second.MODEL.LOSSES.NAME == ("DiscrepantProxyLoss", "MultiInstanceLoss") and second.SOLVER.MAX_EPOCH == 3
        assert first.SOLVER.BASE_LR == second.SOLVER.BASE_LR == cfg.SOLVER.BASE_LR
        folders = [f"{cfg.OUTPUT_DIR}/stage1", f"{cfg.OUTPUT_DIR}/stage2"]
        assert folders == [first.OUTPUT_DIR, second.OUTPUT_DIR]
        assert folders[1] + "/start.pth" == second.MODEL.WEIGHTS and not second.MODEL.BACKBONE.PRETRAIN
        assert first.STAGES == second.STAGES == ()

    def test_from_a_file_and_back(self, cfg: CfgNode, tmp_path: Path) -> None:
        """In the notation of the config files, including tuples as strings."""
        (tmp_path / "stages.yml").write_text(
            """STAGES:
            - MODEL: {LOSSES: {NAME: [DiscrepantProxyLoss]}}
              SOLVER: {MAX_EPOCH: 2}
            - MODEL:
                LOSSES:
                  NAME: ("DiscrepantProxyLoss", "MultiInstanceLoss")
              SOLVER: {MAX_EPOCH: 3}
            """
        )
        cfg.merge_from_file(str(tmp_path / "stages.yml"))
        expected = cfg.clone()
        expected.STAGES = TWO_STAGES
        assert stage_configs(cfg) == stage_configs(expected)
        (tmp_path / "dump.yml").write_text(cfg.dump())
        again = get_cfg()
        add_ice_config(again)
        again.merge_from_file(str(tmp_path / "dump.yml"))
        assert stage_configs(again) == stage_configs(cfg)

    def test_the_command_line_counts_in_every_stage(self, cfg: CfgNode) -> None:
        cfg.STAGES = TWO_STAGES
        cfg.SOLVER.MAX_EPOCH = 7
        cfg.STAGES = without_keys(cfg.STAGES, ["SOLVER.MAX_EPOCH", "CLUSTER.EPS", "SOLVER.MAX_EPOCH.X"])
        assert [stage.SOLVER.MAX_EPOCH for stage in stage_configs(cfg)] == [7, 7]
        assert TWO_STAGES[0]["SOLVER"] == {"MAX_EPOCH": 2}, "the argument is unchanged"

    @pytest.mark.parametrize(
        ("overlay", "message"),
        [
            (3, "stage 2: 3 must be a mapping"),
            (None, "stage 2: None must be a mapping"),
            ({"MODEL": {"LOSSE": {}}}, "stage 2: Non-existent config key: MODEL.LOSSE"),
            ({"SOLVER": {"MAX_EPOCH": "many"}}, "stage 2: Type mismatch .* SOLVER.MAX_EPOCH"),
            ({"SOLVER": 3}, "stage 2: SOLVER must hold keys, not 3"),
            ({1: 2}, "stage 2: "),
            ({"OUTPUT_DIR": "elsewhere"}, "stage 2: OUTPUT_DIR is common to all stages; set it outside of STAGES"),
            ({"MODEL": {"BACKBONE": {"DEPTH": "x1_0"}}}, "stage 2: MODEL.BACKBONE is common to all stages"),
            ({"IMPORTS": ["mine.py"]}, "stage 2: IMPORTS is common to all stages; set it outside of STAGES"),
            ({"CLUSTER": {"EPS": 1.5}}, "stage 2: CLUSTER.EPS 1.5 must lie between 0 and 1"),
            ({"HOOKS": ["MomentHook"]}, "stage 2: HOOKS: 'MomentHook' is not registered; choose from"),
            ({"DATASETS": {"NAMES": ["Market"]}}, "stage 2: DATASETS.NAMES: 'Market' is not registered"),
            ({"DATASETS": {"TESTS": ["Market"]}}, "stage 2: DATASETS.TESTS: 'Market' is not registered"),
            (
                {"MODEL": {"LOSSES": {"DISCREPANT_PROX": {"UPDATES": ["each"]}}}},
                "stage 2: MODEL.LOSSES.DISCREPANT_PROX is read by no loss; the losses read .*DISCREPANT_PROXY",
            ),
            (
                {"MODEL": {"LOSSES": {"DISCREPANT_PROXY": {"TEMPERATURE": 0.0}}}},
                "stage 2: MODEL.LOSSES.DISCREPANT_PROXY.TEMPERATURE 0.0 must be above 0",
            ),
            ({"MODEL": {"LOSSES": {"NAME": ["Centre"]}}}, "stage 2: MODEL.LOSSES.NAME: 'Centre' is not registered"),
        ],
    )
    def test_a_bad_stage_is_one_sentence(self, cfg: CfgNode, overlay: object, message: str) -> None:
        """Found before the first stage starts."""
        cfg.STAGES = ({}, overlay)
        with pytest.raises(InputError, match=message) as error:
            check_config(cfg)
        assert "\n" not in str(error.value)

    def test_good_stages_pass(self, cfg: CfgNode) -> None:
        cfg.STAGES = TWO_STAGES
        check_config(cfg)

    def test_other_meta_architectures_have_no_stages(self, cfg: CfgNode) -> None:
        cfg.STAGES = TWO_STAGES
        cfg.MODEL.META_ARCHITECTURE = "Baseline"
        cfg.MODEL.HEADS.NAME = "EmbeddingHead"
        with pytest.raises(InputError, match="STAGES needs MODEL.META_ARCHITECTURE MomentumReID"):
            check_config(cfg)


@pytest.mark.parametrize("encoder", ["online", "momentum"])
def test_the_encoder_under_test_starts_both_encoders(cfg: CfgNode, encoder: str) -> None:
    cfg.STAGES = TWO_STAGES
    cfg.MODEL.START_FROM = "best"
    cfg.TEST.ENCODER = encoder
    train_stages(cfg)
    first, second = stage_configs(cfg)
    folders = [Path(stage.OUTPUT_DIR) for stage in (first, second)]
    best = weights(folders[0] / "model_best.pth")
    names = [name for name in best if name.startswith(("backbone.", "heads."))]
    prefix = "momentum." if encoder == "momentum" else ""
    start = UnsupervisedTrainer.build_model(second)
    start.load_state_dict(weights(folders[1] / "start.pth"))
    for name, value in start.state_dict().items():
        assert torch.equal(value, best[prefix + name.removeprefix("momentum.")]), name
    assert len(start.state_dict()) == 2 * len(names)
    # The metrics show the same: the evaluation before the first epoch of stage 2 is that of the best epoch of stage 1.
    assert scalars(folders[1], "start/mAP") == [pytest.approx(max(scalars(folders[0], "mAP")))]
    size = (folders[1] / "start.pth").stat().st_size
    assert size < 1.5 * sum(best[name].numel() * best[name].element_size() for name in names) + 2**20


def test_metrics_log_and_closing_table_name_the_stage(cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> None:
    cfg.STAGES = TWO_STAGES
    cfg.SOLVER.STEPS = [1]
    with caplog.at_level("INFO"):
        results = train_stages(cfg)
    folders = [Path(stage.OUTPUT_DIR) for stage in stage_configs(cfg)]
    assert scalars(folders[0], "stage") == [1, 1] and scalars(folders[1], "stage") == [2, 2, 2]
    rates = [[rate / cfg.SOLVER.BASE_LR for rate in scalars(folder, "lr")] for folder in folders]
    assert rates == [pytest.approx([1, 0.1]), pytest.approx([1, 0.1, 0.1])], "each stage has its own schedule"
    assert results["mAP"] == pytest.approx(scalars(folders[1], "mAP")[-1])
    assert {"loss_discrepant_proxy", "loss_multi_instance"} <= set((folders[1] / "metrics.json").read_text().split('"'))
    assert "loss_multi_instance" not in (folders[0] / "metrics.json").read_text()
    messages = [record.getMessage() for record in caplog.records]
    assert [message for message in messages if ", epoch" in message and message.startswith("Stage")] == [
        *(f"Stage 1 of 2, epoch {epoch}" for epoch in (1, 2)),
        *(f"Stage 2 of 2, epoch {epoch}" for epoch in (1, 2, 3)),
    ]
    assert any("Both encoders start from the momentum encoder of" in message for message in messages)
    (table,) = [message for message in messages if message.startswith("All stages:")]
    rows = [line.split()[:2] for line in table.splitlines()[3:]]
    assert rows == [["1", "start"], ["1", "1"], ["1", "2"], ["2", "start"], ["2", "1"], ["2", "2"], ["2", "3"]]


def test_resume_in_any_stage_equals_the_uninterrupted_run(cfg: CfgNode, tmp_path: Path, monkeypatch) -> None:
    """Interrupted in stage 1, at the very start of stage 2, and within it; a finished run does not change."""
    cfg.STAGES = TWO_STAGES
    cfg.OUTPUT_DIR = str(tmp_path / "whole")
    train_stages(cfg)
    expected = [weights(f"{stage.OUTPUT_DIR}/model_final.pth") for stage in stage_configs(cfg)]
    cfg.OUTPUT_DIR = str(tmp_path / "parts")
    stages = Run(cfg).stages
    interrupt(monkeypatch, cfg, stage=0, epoch=1)
    assert [is_complete(stage) for stage in stages] == [False, False]
    interrupt(monkeypatch, cfg, stage=1, epoch=0, resume=True)
    assert [is_complete(stage) for stage in stages] == [True, False]
    interrupt(monkeypatch, cfg, stage=1, epoch=2, resume=True)
    train_stages(cfg, resume=True)
    for stage, state in zip(stages, expected, strict=True):
        assert_equal(weights(stage.last_weights), state)
    assert all(is_complete(stage) for stage in stages)
    assert train_stages(cfg, resume=True)["mAP"] > 0
    assert_equal(weights(stages[1].last_weights), expected[1])


def test_checkpoints_of_an_earlier_run_are_not_resumed(cfg: CfgNode, monkeypatch) -> None:
    """A run that starts again in the same folder, and is interrupted before its second stage has a checkpoint."""
    cfg.STAGES = TWO_STAGES
    train_stages(cfg)
    assert "stage 2" in Path(cfg.OUTPUT_DIR, "report.html").read_text()
    cfg.SEED = 1
    interrupt(monkeypatch, cfg, stage=0, epoch=1)
    assert "stage 2" not in Path(cfg.OUTPUT_DIR, "report.html").read_text()
    interrupt(monkeypatch, cfg, stage=1, epoch=0, resume=True)
    train_stages(cfg, resume=True)
    parts = weights(f"{stage_configs(cfg)[1].OUTPUT_DIR}/model_final.pth")
    cfg.OUTPUT_DIR += "_other"
    train_stages(cfg)
    assert_equal(parts, weights(f"{stage_configs(cfg)[1].OUTPUT_DIR}/model_final.pth"))


class CountWhatIsLeft(HookBase):
    """Counts the image caches and loader workers that exist when a stage starts."""

    counts: ClassVar[list[tuple[int, int]]] = []

    def __init__(self, cfg: CfgNode) -> None:
        pass

    def before_train(self) -> None:
        caches = sum(isinstance(thing, CropCache) for thing in gc.get_objects())
        self.counts.append((caches, len(multiprocessing.active_children())))


def test_a_stage_leaves_no_cache_and_no_worker_to_the_next(cfg: CfgNode, monkeypatch) -> None:
    monkeypatch.setitem(HOOK_REGISTRY._obj_map, "CountWhatIsLeft", CountWhatIsLeft)
    cfg.merge_from_list(["DATALOADER.CACHE", "ram", "DATALOADER.NUM_WORKERS", 1, "DATASETS.TESTS", ()])
    cfg.HOOKS = ("CountWhatIsLeft", *cfg.HOOKS)
    cfg.STAGES = TWO_STAGES
    gc.collect()
    gc.disable()  # the result must not depend on when it runs
    try:
        train_stages(cfg)
    finally:
        gc.enable()
    first, second = CountWhatIsLeft.counts
    assert first == second


def test_without_evaluation_the_last_weights_are_handed_on(cfg: CfgNode) -> None:
    cfg.STAGES = TWO_STAGES
    cfg.TEST.EVAL_PERIOD = -1
    assert train_stages(cfg) is None
    first, second = Run(cfg).stages
    assert first.best_weights == first.last_weights == Path(cfg.OUTPUT_DIR, "stage1", "model_final.pth")
    expected = encoder_weights(weights(first.last_weights), "momentum")
    assert_equal(weights(second.cfg.MODEL.WEIGHTS), expected)


def test_one_overlay_counts(cfg: CfgNode) -> None:
    """A single stage writes to the run's own folder, as without stages."""
    cfg.STAGES = ({"MODEL": {"LOSSES": {"NAME": ["DiscrepantProxyLoss"]}}, "SOLVER": {"MAX_EPOCH": 1}},)
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir()
    train_stages(cfg)
    assert len(scalars(folder, "loss_discrepant_proxy")) == 1 and not scalars(folder, "loss_hard_instance")


def test_one_stage_is_a_plain_run(cfg: CfgNode, tmp_path: Path) -> None:
    cfg.OUTPUT_DIR = str(tmp_path / "plain")
    expected = {name: value.clone() for name, value in train(cfg).model.state_dict().items()}
    cfg.OUTPUT_DIR = str(tmp_path / "stages")
    Path(cfg.OUTPUT_DIR).mkdir()
    train_stages(cfg)
    found = weights(tmp_path / "stages" / "model_final.pth")
    assert_equal(found, expected)
    files = [
        {path.name for path in folder.iterdir() if not path.name.startswith("events.")}
        for folder in (tmp_path / "plain", tmp_path / "stages")
    ]
    assert files[1] == files[0] | {"report.html"}
    assert not scalars(tmp_path / "stages", "stage")
