"""Whole runs on real files: their output, and that they can be repeated and resumed."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path

import pytest
import torch
from fastreid.config import CfgNode
from fastreid.data.data_utils import read_image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from fastreid_ice import InputError
from fastreid_ice.config import Run, Stage
from fastreid_ice.core.radius import RADII
from fastreid_ice.data import build_training_set, crops
from fastreid_ice.engine import Checkpointer, UnsupervisedTrainer
from fastreid_ice.engine.hooks import ReclusterHook
from fastreid_ice.reporting import epoch_table, read_stage, write_report
from support import small_config, train


def scalars_of(cfg: CfgNode) -> list[dict[str, float]]:
    return [json.loads(line) for line in Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()]


def losses_of(trainer: UnsupervisedTrainer) -> list[tuple[float, int]]:
    """(total loss, iteration) of every step; metrics.json holds medians over several."""
    return trainer.storage.history("total_loss").values()


def weights_of(trainer: UnsupervisedTrainer) -> dict[str, Tensor]:
    return copy.deepcopy(trainer.model.state_dict())


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_a_run_leaves_metrics_checkpoints_and_a_table(cfg: CfgNode) -> None:
    train(cfg)
    lines = scalars_of(cfg)
    names = {name for line in lines for name in line}
    assert {f"loss_{name}" for name in ("cluster_proxy", "cross_camera", "hard_instance", "soft_consistency")} <= names
    assert {"cluster/number", "cluster/noise_share", "cluster/largest", "cluster/churn"} <= names
    assert {"cluster/ari", "cluster/nmi", "start/mAP", "mAP", "Rank-1"} <= names
    stages = [f"seconds/{stage}" for stage in ("features", "neighbors", "jaccard", "dbscan", "evaluation")]
    for epoch in read_stage(Stage(cfg)).values():
        assert all(epoch[name] > 0 for name in stages)
        assert epoch["seconds/epoch"] > sum(epoch[name] for name in [*stages, "seconds/start"] if name in epoch)
        assert epoch["processor_seconds/epoch"] > epoch["processor_seconds/evaluation"] > 0
    assert sum("mAP" in line for line in lines) == sum("cluster/number" in line for line in lines) == 2
    folder = Path(cfg.OUTPUT_DIR)
    assert {"model_best.pth", "model_0000.pth", "model_final.pth", "last_checkpoint"} <= {
        path.name for path in folder.iterdir()
    }
    board = EventAccumulator(cfg.OUTPUT_DIR).Reload()
    assert {"total_loss", "cluster/number", "mAP"} <= set(board.Tags()["scalars"])
    rows = epoch_table(Stage(cfg)).splitlines()
    assert rows[0].split()[:2] == ["epoch", "clusters"]
    assert [row.split()[0] for row in rows[2:]] == ["start", "1", "2"]
    assert float(rows[-1].split()[-2]) == pytest.approx(lines[-1]["mAP"], abs=0.05)


def test_the_chosen_radius_is_logged_and_charted(cfg: CfgNode) -> None:
    cfg.CLUSTER.AUTO_EPS = True
    train(cfg)
    assert all(0 < eps <= 1 for eps in (line["cluster/eps"] for line in scalars_of(cfg) if "cluster/number" in line))
    page = write_report(Run(cfg)).read_text()
    assert "Radius that CLUSTER.AUTO_EPS chose" in page
    radii = Stage(cfg).radii.read_text().splitlines()
    assert radii[0] == "eps,expected_f,num_clusters,noise_share,largest" and len(radii) == 1 + len(RADII)
    best = max((row.split(",") for row in radii[1:]), key=lambda row: float(row[1]))
    assert float(best[0]) == pytest.approx(
        [line["cluster/eps"] for line in scalars_of(cfg) if "cluster/eps" in line][-1]
    )
    assert f"Chosen: radius {float(best[0]):g}." in page


def test_tracks_are_kept_and_counted(cfg: CfgNode) -> None:
    """With one key, from the drawn images to metrics.json and the report; without tracks it is refused at once."""
    cfg.CLUSTER.TRACKS, cfg.SOLVER.MAX_EPOCH = True, 1
    with pytest.raises(InputError, match="CLUSTER.TRACKS needs tracks, and no image has one"):
        UnsupervisedTrainer(cfg)
    cfg.DATASETS.SYNTHETIC.FRAMES = cfg.DATASETS.SYNTHETIC.IMAGES_PER_CAMERA
    trainer = train(cfg)
    known = trainer.data_loader.training_set.known
    (labels,) = (hook.labels for hook in trainer._hooks if isinstance(hook, ReclusterHook))
    tracks = known.cameras * 100 + known.tracks
    assert len(torch.stack((tracks, labels)).unique(dim=1).T) == len(tracks.unique()) == 18
    (last,) = (line for line in scalars_of(cfg) if "cluster/number" in line)
    assert last["cluster/must_link"] == 18 * 3 and last["cluster/cannot_link"] > 0
    assert last["cluster/violations"] >= last["cluster/repaired"] >= 0
    assert "Forbidden pairs in one cluster, and clusters that were cut" in write_report(Run(cfg)).read_text()


def test_corrections_are_kept_and_counted(cfg: CfgNode, tmp_path: Path) -> None:
    """With one key, from the file to metrics.json and the report; a resumed run takes the file as it is then."""
    paths = [str(Path(path).resolve()) for path in build_training_set(cfg).paths]
    cfg.CORRECTIONS = str(tmp_path / "corrections.csv")
    with pytest.raises(InputError, match="CORRECTIONS .*corrections.csv: No such file"):
        UnsupervisedTrainer(cfg)
    rows = [f"{paths[0]},same,{paths[20]}", f"{paths[0]},different,{paths[1]}", f"{paths[40]},nobody,"]
    Path(cfg.CORRECTIONS).write_text("\n".join(("image,relation,other", *rows)))

    def labels_of(trainer: UnsupervisedTrainer) -> Tensor:
        return next(hook.labels for hook in trainer._hooks if isinstance(hook, ReclusterHook))

    cfg.SOLVER.MAX_EPOCH = 1
    labels = labels_of(train(cfg))
    assert labels[0] == labels[20] >= 0 and labels[0] != labels[1] and labels[40] == -1
    (first,) = (line for line in scalars_of(cfg) if "cluster/number" in line)
    assert first["cluster/corrections_nobody"] == 1 and first["cluster/corrections_overruled"] == 0
    assert first["cluster/corrections_joined"] <= 1 and first["cluster/violations"] >= first["cluster/repaired"] >= 0

    Path(cfg.CORRECTIONS).write_text("\n".join(("image,relation,other", *rows[:1], f"{paths[0]},same,{paths[1]}")))
    cfg.SOLVER.MAX_EPOCH = 2
    labels = labels_of(train(cfg, resume=True))
    assert labels[0] == labels[1] == labels[20] >= 0
    last = [line for line in scalars_of(cfg) if "cluster/number" in line][-1]
    assert last["cluster/corrections_nobody"] == 0
    page = write_report(Run(cfg)).read_text()
    assert "People whom CORRECTIONS joined" in page and "Forbidden pairs in one cluster" in page


def test_the_last_evaluation_stands_in_the_row_of_the_last_epoch(cfg: CfgNode) -> None:
    """Also if the period does not divide the epochs, and fast-reid evaluates once more after the last iteration."""
    cfg.SOLVER.MAX_EPOCH = 3
    cfg.TEST.EVAL_PERIOD = 2
    train(cfg)
    rows = epoch_table(Stage(cfg)).splitlines()[2:]
    assert [row.split()[0] for row in rows] == ["start", "1", "2", "3"]
    assert [len(row.split()) for row in rows] == [3, 4, 6, 6]


def test_equal_seeds_give_equal_runs(cfg: CfgNode, tmp_path: Path) -> None:
    runs = []
    for name in ("first", "second"):
        cfg.OUTPUT_DIR = str(tmp_path / name)
        trainer = train(cfg)
        labels = trainer._hooks[1].labels
        runs.append((weights_of(trainer), losses_of(trainer), labels.tolist()))
    assert_equal(runs[0][0], runs[1][0])
    assert len(runs[0][1]) == 4 and runs[0][1] == runs[1][1]
    assert runs[0][2] == runs[1][2]
    cfg.OUTPUT_DIR, cfg.SEED = str(tmp_path / "third"), 1
    assert losses_of(train(cfg)) != runs[0][1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_equals_the_uninterrupted_run(cfg: CfgNode, tmp_path: Path, num_workers: int) -> None:
    """Interrupted after every epoch in turn: weights, optimiser, labels and losses continue as without interruption."""
    cfg.DATALOADER.NUM_WORKERS = num_workers
    cfg.SOLVER.MAX_EPOCH = 3
    cfg.SOLVER.STEPS = [1, 2]
    cfg.SOLVER.WARMUP_ITERS = 3
    cfg.OUTPUT_DIR = str(tmp_path / "whole")
    whole = train(cfg)
    expected, losses = weights_of(whole), losses_of(whole)
    cfg.OUTPUT_DIR = str(tmp_path / "parts")
    interrupt_after_epoch(cfg, 0)
    interrupt_after_epoch(cfg, 1, resume=True)
    resumed = train(cfg, resume=True)
    assert_equal(weights_of(resumed), expected)
    assert losses_of(resumed) == losses[-2:]
    for key, value in whole.optimizer.state_dict()["state"].items():
        assert_equal(value, resumed.optimizer.state_dict()["state"][key])
    churn = {line["iteration"] for line in scalars_of(cfg) if "cluster/churn" in line}
    assert churn == {2, 4}, "the labels before an interruption are known after it"


def interrupt_after_epoch(cfg: CfgNode, epoch: int, *, resume: bool = False) -> None:
    class Interrupted(Exception):
        pass

    def stop() -> None:
        if trainer.epoch == epoch + 1:
            raise Interrupted

    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    torch.manual_seed(cfg.SEED)
    trainer = UnsupervisedTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer._hooks[0].before_step = stop
    with pytest.raises(Interrupted):
        trainer.train()


def test_resuming_a_complete_run_evaluates(cfg: CfgNode) -> None:
    cfg.SOLVER.MAX_EPOCH = 1
    trainer = train(cfg)
    before = weights_of(trainer)
    again = UnsupervisedTrainer(cfg)
    again.resume_or_load(resume=True)
    results = again.train()
    assert results["mAP"] > 0
    assert_equal(weights_of(again), before)


def test_the_encoder_under_test_is_evaluated(cfg: CfgNode) -> None:
    cfg.SOLVER.MAX_EPOCH = 1
    cfg.TEST.BEFORE_TRAINING = False
    trainer = train(cfg)
    figures = {}
    for encoder in ("online", "momentum"):
        trainer.model.test_encoder = encoder
        figures[encoder] = trainer.test(cfg, trainer.model)["mAP"]
    assert figures["momentum"] == pytest.approx(scalars_of(cfg)[-1]["mAP"])
    assert figures["online"] != figures["momentum"]


def test_test_images_are_decoded_once_in_a_run(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before training and after both epochs they are evaluated, and give what they give without a cache."""
    cfg.DATALOADER.CACHE, cfg.DATALOADER.NUM_WORKERS, cfg.TEST.EVAL_PERIOD = "ram", 0, 1
    reads = []
    monkeypatch.setattr(crops, "read_image", lambda path: reads.append(path) or read_image(path))
    trainer = train(cfg)
    loader, _ = trainer.build_test_loader(cfg, cfg.DATASETS.TESTS[0])
    assert all(reads.count(path) == 1 for path in loader.dataset.paths)
    assert len([line for line in scalars_of(cfg) if "mAP" in line]) == 2
    assert trainer.test(cfg, trainer.model)["mAP"] == pytest.approx(scalars_of(cfg)[-1]["mAP"])


def test_training_moves_both_encoders_and_their_statistics(cfg: CfgNode) -> None:
    torch.manual_seed(cfg.SEED)
    start = UnsupervisedTrainer.build_model(cfg).state_dict()
    cfg.SOLVER.MAX_EPOCH = 1
    end = weights_of(train(cfg))
    moved = {name for name, value in end.items() if not torch.equal(value, start[name])}
    assert len(moved) > 0.9 * len(end)
    assert any(name.startswith("momentum.") and name.endswith("running_var") for name in moved)


def test_ground_truth_as_clusterer(cfg: CfgNode) -> None:
    cfg.CLUSTER.NAME = "GroundTruth"
    cfg.SOLVER.MAX_EPOCH = 1
    train(cfg)
    line = next(line for line in scalars_of(cfg) if "cluster/ari" in line)
    assert line["cluster/ari"] == 1 and line["cluster/number"] == 6 and line["cluster/noise_share"] == 0


class TestWeights:
    def test_shapes_that_do_not_fit(self, cfg: CfgNode, tmp_path: Path) -> None:
        model = UnsupervisedTrainer.build_model(cfg)
        state = model.state_dict()
        name = next(name for name, value in state.items() if value.dim() == 4)
        state[name] = torch.zeros(1, 2, 3, 4)
        torch.save({"model": state}, tmp_path / "other.pth")
        with pytest.raises(InputError, match=f"other.pth does not fit this model: {name} is"):
            Checkpointer(model).load(str(tmp_path / "other.pth"))

    def test_another_backbone(self, cfg: CfgNode, tmp_path: Path) -> None:
        torch.save({"model": {"backbone.stem.weight": torch.zeros(3)}}, tmp_path / "other.pth")
        with pytest.raises(InputError, match="it has no .*backbone.* more"):
            Checkpointer(UnsupervisedTrainer.build_model(cfg)).load(str(tmp_path / "other.pth"))

    def test_bare_weights(self, cfg: CfgNode, tmp_path: Path) -> None:
        torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "bare.pth")
        with pytest.raises(InputError, match="bare.pth is not a fast-reid checkpoint.*PRETRAIN_PATH"):
            Checkpointer(UnsupervisedTrainer.build_model(cfg)).load(str(tmp_path / "bare.pth"))

    @pytest.mark.parametrize("content", [b"", b"not weights"])
    def test_no_weights_at_all(self, cfg: CfgNode, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "text.pth").write_bytes(content)
        with pytest.raises(InputError, match="cannot load weights from .*text.pth"):
            Checkpointer(UnsupervisedTrainer.build_model(cfg)).load(str(tmp_path / "text.pth"))

    def test_no_file(self, cfg: CfgNode) -> None:
        with pytest.raises(InputError, match="MODEL.WEIGHTS: no file 'nowhere.pth'"):
            Checkpointer(UnsupervisedTrainer.build_model(cfg)).load("nowhere.pth")


def test_nothing_of_the_small_config_is_forgotten() -> None:
    """The tests train with all four losses of ICE and the published choices, on synthetic data."""
    cfg = small_config()
    assert len(cfg.MODEL.LOSSES.NAME) == 4 and cfg.MODEL.LOSSES.CROSS_CAMERA.PROXY_NORM == "coordinate"


class TestBatchesAndImages:
    """54 images, with four of each pseudo identity in a batch."""

    def test_a_batch_that_no_clusters_fill_is_refused(self, cfg: CfgNode) -> None:
        cfg.SOLVER.IMS_PER_BATCH = 220
        sentence = "^SOLVER.IMS_PER_BATCH 220 takes 55 pseudo identities, .* 54 training .*; lower it to at most 216$"
        with pytest.raises(InputError, match=sentence):
            UnsupervisedTrainer.build_train_loader(cfg)

    @pytest.mark.parametrize(("batch", "warned"), [(52, False), (56, True)])
    def test_a_batch_of_more_than_all_images_is_announced(self, cfg: CfgNode, caplog, batch: int, warned: bool) -> None:
        cfg.SOLVER.IMS_PER_BATCH = batch
        with caplog.at_level(logging.WARNING):
            UnsupervisedTrainer.build_train_loader(cfg)
        assert ("SOLVER.IMS_PER_BATCH 56 is more than the 54 training images" in caplog.text) == warned


@pytest.mark.parametrize("lost", [["optimizer"], ["ReclusterHook", "lr_sched"], []])
def test_a_checkpoint_without_all_state_is_announced(cfg: CfgNode, caplog, lost: list[str]) -> None:
    cfg.SOLVER.MAX_EPOCH = 1
    train(cfg)
    path = Path(cfg.OUTPUT_DIR, "model_final.pth")
    state = torch.load(path, weights_only=True)
    torch.save({key: value for key, value in state.items() if key not in lost}, path)
    cfg.SOLVER.MAX_EPOCH = 2
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        trainer = train(cfg, resume=True)
    assert trainer.start_epoch == 1
    names = ", ".join(sorted(lost))
    said = f"{path} holds no state of {names}, which starts afresh: the run is not the one that was interrupted"
    assert (said in caplog.text) == bool(lost) and ("holds no state of" in caplog.text) == bool(lost)
