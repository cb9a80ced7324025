"""ReclusterHook in bad epochs: real runs with injected clusterings."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.engine.train_loop import HookBase
from PIL import Image
from torch import Tensor

from fastreid_ice import InputError
from fastreid_ice.clusterers import CLUSTERER_REGISTRY, HDBSCAN, Clusterer, JaccardDBSCAN, KMeans
from fastreid_ice.core import ImageTable, centroids
from fastreid_ice.data import build_training_set
from fastreid_ice.engine import UnsupervisedTrainer, extract_features
from fastreid_ice.engine.hooks import HOOK_REGISTRY, MomentumHook, ReclusterHook, build_hooks
from support import small_config, train

N = 54  # images of small_config


CASES: dict[str, Callable[[], Tensor]] = {
    "fewer clusters than identities per batch": lambda: torch.where(torch.arange(N) < 20, torch.arange(N) // 10, -1),
    "a cluster with one image": lambda: torch.cat([torch.zeros(1), 1 + torch.arange(N - 1) // 20]).long(),
    "only clusters with one image": lambda: torch.arange(N),
    "one image clustered twice over": lambda: torch.tensor([0, 1] + [-1] * (N - 2)),
}


@pytest.fixture
def inject(cfg: CfgNode):
    """Replaces the clusterings of a run by those given, one per epoch, and the last for all further epochs."""

    def register(*labelings: Tensor, base: type[Clusterer] = JaccardDBSCAN) -> None:
        class Injected(base):
            def __init__(self) -> None:
                Clusterer.__init__(self)
                self.rest = list(labelings)

            @classmethod
            def from_config(cls, cfg: CfgNode) -> Clusterer:
                return cls()

            def labels(self, features: Tensor, known: ImageTable) -> Tensor:
                return self.rest.pop(0) if len(self.rest) > 1 else self.rest[0]

        CLUSTERER_REGISTRY._obj_map["Injected"] = Injected
        cfg.CLUSTER.NAME = "Injected"

    yield register
    CLUSTERER_REGISTRY._obj_map.pop("Injected", None)


def finite_losses(trainer: UnsupervisedTrainer) -> list[float]:
    values = [value for value, _ in trainer.storage.history("total_loss").values()]
    assert torch.tensor(values).isfinite().all()
    return values


@pytest.mark.parametrize("case", list(CASES))
def test_trains_on_what_there_is(cfg: CfgNode, inject, case: str) -> None:
    inject(CASES[case]())
    cfg.SOLVER.MAX_EPOCH = 1
    cfg.SOLVER.IMS_PER_BATCH = 16  # four identities a batch
    cfg.MODEL.LOSSES.NAME = (*cfg.MODEL.LOSSES.NAME, "DiscrepantProxyLoss", "MultiInstanceLoss")
    assert len(finite_losses(train(cfg))) == cfg.SOLVER.ITERS_PER_EPOCH


@pytest.mark.parametrize(
    ("bad", "what"), [(torch.full((N,), -1), "every image is noise"), (torch.zeros(N).long(), "all in one cluster")]
)
def test_keeps_the_previous_labels(cfg: CfgNode, inject, caplog, bad: Tensor, what: str) -> None:
    good = torch.arange(N) // 9
    inject(good, bad, bad, good)
    cfg.SOLVER.MAX_EPOCH = 4
    with caplog.at_level(logging.WARNING, logger="fastreid"):
        trainer = train(cfg)
    assert len(finite_losses(trainer)) == 8
    assert caplog.text.count(f"Fewer than two clusters ({what}); this epoch trains on the previous labels") == 2
    assert torch.equal(trainer._hooks[1].labels, good) and trainer._hooks[1].failures == 0


def test_without_previous_labels_every_image_is_its_own(cfg: CfgNode, inject, caplog) -> None:
    inject(torch.full((N,), -1), torch.arange(N) // 9)
    with caplog.at_level(logging.WARNING, logger="fastreid"):
        trainer = train(cfg)
    assert "in this epoch every image is a separate identity" in caplog.text
    assert len(finite_losses(trainer)) == 4


def test_patience_ends_the_run_and_names_the_key(cfg: CfgNode, inject) -> None:
    inject(torch.arange(N) // 9, torch.full((N,), -1))
    cfg.SOLVER.MAX_EPOCH = 9
    with pytest.raises(InputError, match=r"3 epochs in a row .*every image is noise.* raise CLUSTER.EPS"):
        train(cfg)
    assert (Path(cfg.OUTPUT_DIR) / "model_0002.pth").is_file(), "the weights are kept"
    assert not (Path(cfg.OUTPUT_DIR) / "model_0003.pth").exists()
    # The count survives an interruption: the next epoch is the third bad one, not the first.
    with pytest.raises(InputError, match="3 epochs in a row"):
        inject(torch.zeros(N).long())
        train(cfg, resume=True)


@pytest.mark.parametrize(
    ("base", "found", "advice"),
    [
        (JaccardDBSCAN, 0, "all in one cluster.* lower CLUSTER.EPS, or start from better weights"),
        (HDBSCAN, -1, "every image is noise.* lower CLUSTER.MIN_SAMPLES or CLUSTER.MIN_CLUSTER_SIZE, or start"),
        (KMeans, 0, "all in one cluster.* choose another CLUSTER.NAME, or start"),
    ],
)
def test_advice_is_that_of_the_clusterer(cfg: CfgNode, inject, base: type[Clusterer], found: int, advice: str) -> None:
    inject(torch.full((N,), found), base=base)
    cfg.CLUSTER.PATIENCE = 1
    with pytest.raises(InputError, match=advice):
        train(cfg)


@pytest.mark.parametrize(
    "cameras",
    [
        pytest.param([1] * 24, id="all images in one camera"),
        pytest.param([1] * 23 + [2], id="a camera with one image"),
        pytest.param([1, 4, 6] * 8, id="camera ids with gaps"),
    ],
)
def test_cameras_of_every_kind(cameras: list[int], tmp_path: Path, monkeypatch, datasets_root: Path) -> None:
    crops = sorted(datasets_root.rglob("bounding_box_train/*.jpg"))[:24]
    for part in ("bounding_box_train", "query", "bounding_box_test"):
        folder = tmp_path / "Market-1501-v15.09.15" / part
        folder.mkdir(parents=True)
        for number, (crop, camera) in enumerate(zip(crops, cameras, strict=True)):
            Image.open(crop).save(folder / f"{1 + number // 6:04d}_c{camera}s1_{number:06d}_00.jpg")
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    cfg = small_config(
        OUTPUT_DIR=str(tmp_path / "run"),
        **{"DATASETS.NAMES": ("Market1501",), "DATASETS.TESTS": (), "CLUSTER.NAME": "GroundTruth"},
    )
    assert len(finite_losses(train(cfg))) == 4


def test_unreadable_images_are_counted_or_named(tmp_path: Path, monkeypatch, datasets_root: Path, caplog) -> None:
    """Depending on the config, a file that is not an image ends the run with its name, or is left out and counted."""
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    cfg = small_config(OUTPUT_DIR=str(tmp_path / "run"), **{"SOLVER.MAX_EPOCH": 1, "DATASETS.TESTS": ()})
    broken = build_training_set(cfg).paths[5]
    Path(broken).write_bytes(b"broken")
    with pytest.raises(InputError, match=f"{Path(broken).name}.*DATALOADER.UNREADABLE skip"):
        train(cfg)
    cfg.DATALOADER.UNREADABLE = "skip"
    with caplog.at_level(logging.WARNING, logger="fastreid"):
        trainer = train(cfg)
    assert f"1 of {N} training images cannot be read" in caplog.text and Path(broken).name in caplog.text
    assert trainer._hooks[0].labels[5] == -1
    lines = map(json.loads, (tmp_path / "run" / "metrics.json").read_text().splitlines())
    assert next(line for line in lines if "cluster/unreadable" in line)["cluster/unreadable"] == 1


@pytest.mark.parametrize(
    ("encoder", "loss", "extracted"),
    [
        ("online", "MultiInstanceLoss", ["online", "momentum"]),
        ("online", "DiscrepantProxyLoss", ["online"]),
        ("momentum", "MultiInstanceLoss", ["momentum"]),
    ],
)
def test_memories_start_from_the_encoder_they_belong_to(
    cfg: CfgNode, inject, caplog, encoder: str, loss: str, extracted: list[str]
) -> None:
    """A bank holds momentum features even if the online ones are clustered; only encoders that are needed run."""

    class Witness(HookBase):
        def __init__(self, cfg: CfgNode) -> None:
            pass

        def before_epoch(self) -> None:
            caplog.clear() if self.trainer.epoch == 0 else self.look()

        def look(self) -> None:
            self.text = caplog.text
            self.memory = next(self.trainer.model.losses.buffers()).clone()
            self.features = {
                name: extract_features(self.trainer.model, self.trainer.feature_loader, name)[0]
                for name in ("online", "momentum")
            }

    labels = torch.arange(N) // 9
    inject(labels)
    cfg.CLUSTER.FEATURES = encoder
    cfg.MODEL.LOSSES.NAME = (loss,)
    cfg.MODEL.LOSSES.MULTI_INSTANCE.NUM_INSTANCES = 9
    HOOK_REGISTRY._obj_map["Witness"] = Witness
    cfg.HOOKS = ("ReclusterHook", "Witness", "MomentumHook")
    try:
        with caplog.at_level(logging.INFO, logger="fastreid"):
            trainer = train(cfg)
    finally:
        del HOOK_REGISTRY._obj_map["Witness"]
    witness = next(hook for hook in trainer._hooks if isinstance(hook, Witness))
    online, momentum = witness.features["online"], witness.features["momentum"]
    assert not torch.allclose(online, momentum), "in the second epoch the encoders differ"
    if loss == "DiscrepantProxyLoss":
        torch.testing.assert_close(witness.memory, F.normalize(centroids(online, labels)).expand(2, -1, -1))
    else:
        for rows, members in zip(witness.memory, momentum.unflatten(0, (-1, 9)), strict=True):
            torch.testing.assert_close(rows[rows[:, 0].argsort()], members[members[:, 0].argsort()])
    assert re.findall(r"Extracting (\w+) features: \d+ done", witness.text) == extracted


def test_unreadable_images_stay_out_of_an_epoch_without_clusters(cfg: CfgNode, inject, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    cfg.merge_from_list(["DATALOADER.UNREADABLE", "skip", "SOLVER.MAX_EPOCH", 1, "DATASETS.TESTS", ()])
    Path(build_training_set(cfg).paths[5]).write_bytes(b"broken")
    inject(torch.full((N - 1,), -1))
    labels = train(cfg)._hooks[0].labels
    assert labels[5] == -1 and labels[labels >= 0].tolist() == list(range(N - 1))


def test_hooks_by_name(cfg: CfgNode) -> None:
    assert [type(hook).__name__ for hook in build_hooks(cfg)] == ["ReclusterHook", "MomentumHook"]
    cfg.HOOKS = ("MomentumHook", "Nothing")
    with pytest.raises(InputError, match="HOOKS: 'Nothing' is not registered; choose from MomentumHook, ReclusterHook"):
        build_hooks(cfg)
    assert HOOK_REGISTRY.get("MomentumHook")


@pytest.mark.parametrize("hooks", [(), ("MomentumHook",), ("ReclusterHook",), ("ReclusterHook", "MomentumHook")])
def test_what_a_method_needs_runs_whatever_hooks_says(cfg: CfgNode, hooks: tuple[str, ...]) -> None:
    cfg.HOOKS = hooks
    cfg.SOLVER.MAX_EPOCH = 1
    trainer = train(cfg)
    own = [hook for hook in trainer._hooks if isinstance(hook, (ReclusterHook, MomentumHook))]
    assert len(own) == 2, "each once"
    torch.manual_seed(cfg.SEED)
    start = dict(UnsupervisedTrainer(cfg).model.momentum.named_parameters())
    now = dict(trainer.model.named_parameters())
    learnt = [name for name in start if not torch.equal(now[name], start[name])]
    followed = [name for name in start if not torch.equal(now[f"momentum.{name}"], start[name])]
    assert learnt == followed != []


def test_a_hook_of_ones_own_takes_the_place_of_its_base(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    class Recluster(ReclusterHook):
        pass

    monkeypatch.setitem(HOOK_REGISTRY._obj_map, "Recluster", Recluster)
    cfg.HOOKS = ("Recluster",)
    assert [type(hook) for hook in build_hooks(cfg)] == [MomentumHook, Recluster]


def test_a_giant_cluster_is_told(cfg: CfgNode, inject, caplog, tmp_path, monkeypatch) -> None:
    """In the epoch in which it appears, with the key; not about a usual clustering."""
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    cfg.merge_from_list(["DATASETS.SYNTHETIC.IMAGES_PER_CAMERA", 6, "DATASETS.TESTS", ()])
    number = 2 * N
    inject(torch.arange(number) // 9, torch.where(torch.arange(number) < 80, 0, torch.arange(number) // 4 - 19))
    with caplog.at_level(logging.WARNING, logger="fastreid"):
        train(cfg)
    (said,) = [record.getMessage() for record in caplog.records if "cluster" in record.getMessage()]
    assert said.startswith("Epoch 2: One cluster holds 80 of 108 images (74%), the median of the others is 4; ")
