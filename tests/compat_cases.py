"""A check for each patch of fastreid_ice.compat that passes with the patch and fails without it.

Run as a script, this prints as JSON how each case ends with all patches and without its own. Each run is a fork of a
process that has imported torch but not fastreid. This is like a new process, in a fraction of the time.
"""

from __future__ import annotations

import collections
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import faiss
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torchvision.transforms  # noqa: F401  imported before the forks, as the two below
from PIL import Image
from scipy.spatial.distance import cdist
from sklearn import metrics  # noqa: F401
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils import tensorboard  # noqa: F401

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "data" / "golden"
SECONDS = 60  # for one case, on a busy machine; cases that wait for ever without their patch use `deadline`


class Case(NamedTuple):
    check: Callable[[Path, pytest.MonkeyPatch], None]
    fails_with: str


CASES: dict[str, Case] = {}


def case(fails_with: str) -> Callable:
    """Register a check under the name of the patch that it needs; ``fails_with`` matches the error without it."""

    def register(check: Callable[[Path, pytest.MonkeyPatch], None]) -> Callable:
        CASES[check.__name__] = Case(check, fails_with)
        return check

    return register


# --- imports


@case("ImportError: cannot import name 'Mapping' from 'collections'")
def mapping_alias(tmp_path, monkeypatch):
    import fastreid.evaluation.testing  # noqa: F401


@case("ModuleNotFoundError: No module named 'torch._six'")
def torch_six(tmp_path, monkeypatch):
    import fastreid.data.build  # noqa: F401


@case(r'assert not hasattr\(collections, "Mapping"\)')
def import_fastreid(tmp_path, monkeypatch):
    assert not hasattr(collections, "Mapping")
    assert "torch._six" not in sys.modules


# --- data


@case("NVIDIA driver|CUDA")
def data_loader(tmp_path, monkeypatch):
    from fastreid.data import CommDataset, build_reid_test_loader

    write_images(tmp_path, 3)
    items = [(str(path), i, 0) for i, path in enumerate(sorted(tmp_path.iterdir()))]
    dataset = CommDataset(items, lambda image: torch.from_numpy(np.array(image)), relabel=False)
    loader, _ = build_reid_test_loader(dataset, test_batch_size=2, num_query=1, num_workers=1)
    assert [batch["targets"].tolist() for batch in loader] == [[0, 1], [2]]
    assert [batch["targets"].tolist() for batch in loader] == [[0, 1], [2]]
    loader.shutdown()

    Path(items[1][0]).write_bytes(b"not an image")
    with pytest.raises(OSError, match="1.png"):
        list(loader)


@case("'NoneType' object has no attribute 'tolist'")
def batch_collator(tmp_path, monkeypatch):
    from fastreid.data.build import fast_batch_collator

    samples = [{"a": np.int64(i), "b": np.float32(i), "c": (i, "x"), "d": [torch.ones(2)], "e": i / 2} for i in (3, 4)]
    batch = fast_batch_collator(samples)
    assert batch["a"].tolist() == [3, 4] and batch["a"].dtype == torch.int64
    assert batch["b"].tolist() == [3, 4]
    assert batch["c"][0].tolist() == [3, 4] and batch["c"][1] == ["x", "x"]
    assert batch["d"][0].shape == (2, 2)
    assert batch["e"].tolist() == [1.5, 2.0] and batch["e"].dtype == torch.float64
    with pytest.raises(TypeError, match="a dataset returned a set"):
        fast_batch_collator([{1}])


@case("CalledProcessError")
def dataset_pickle(tmp_path, monkeypatch):
    from fastreid.data import CommDataset

    dataset = CommDataset([("a.jpg", "p1", "c1"), ("b.jpg", "p2", "c1")])
    # Unpickle with nothing imported, as a spawned worker does.
    unpickle = "import pickle, sys; print(pickle.load(sys.stdin.buffer).num_classes)"
    worker = subprocess.run(
        [sys.executable, "-c", unpickle],
        input=pickle.dumps(dataset),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        stdout=subprocess.PIPE,
    )
    assert worker.stdout.split() == [b"2"]


@case(r"AssertionError.*assert color in \(None, image.getpixel")  # palettes
def image_modes(tmp_path, monkeypatch):
    from fastreid.data.common import read_image

    red = Image.new("RGB", (4, 6), (255, 0, 0))
    sixteen_bits = Image.fromarray(np.full((6, 4), 40000, dtype=np.uint16))
    expected = {"P": (255, 0, 0), "RGBA": (255, 0, 0), "LA": (76,) * 3, "1": None, "I;16": (156,) * 3}
    for mode, color in expected.items():
        path = tmp_path / f"{mode.replace(';', '')}.png"
        (sixteen_bits if mode == "I;16" else red.convert(mode)).save(path)
        image = read_image(str(path))
        assert image.mode == "RGB" and image.size == (4, 6)
        assert color in (None, image.getpixel((0, 0)))
    red.convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert read_image(str(tmp_path / "cmyk.jpg")).getpixel((0, 0))[0] > 200

    whole = (tmp_path / "cmyk.jpg").read_bytes()
    (tmp_path / "broken.jpg").write_bytes(whole[: len(whole) - 40])
    with pytest.raises(OSError, match="cannot read the image .*broken.jpg"):
        read_image(str(tmp_path / "broken.jpg"))


@case("TypedStorage is deprecated|Unable to avoid copy")
def image_tensor(tmp_path, monkeypatch):
    from fastreid.data.transforms import ToTensor

    array = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = ToTensor()(Image.fromarray(array))
    assert tensor.dtype == torch.float32 and tensor.is_contiguous()
    assert np.array_equal(tensor.numpy(), array.transpose(2, 0, 1))
    assert ToTensor()(Image.fromarray(array[:, :, 0])).shape == (1, 4, 2)
    assert ToTensor()(Image.new("1", (2, 4), 1)).unique().tolist() == [255]
    assert ToTensor()(Image.new("F", (2, 4), 0.5)).unique().tolist() == [0.5]
    assert ToTensor()(array).equal(tensor)


@case("unexpected keyword argument 'resample'")
def random_affine(tmp_path, monkeypatch):
    from fastreid.data.transforms import build_transforms

    from tiny_market import tiny_config

    transforms = build_transforms(tiny_config(tmp_path, "INPUT.AFFINE.ENABLED", True))
    assert any(isinstance(t, torchvision.transforms.RandomAffine) for t in transforms.transforms)
    assert transforms(Image.new("RGB", (32, 64), (9, 9, 9))).shape == (3, 64, 32)


@case(r"assert \{pid for _, pid, _ in market.train\}")
def dataset_listing(tmp_path, monkeypatch):
    from fastreid.data.datasets import DATASET_REGISTRY

    from tiny_market import FOLDER, draw_tiny_market

    root = draw_tiny_market(tmp_path / "run_12_c3")  # looks like person 12, camera 3
    junk = Image.new("RGB", (32, 64))
    junk.save(root / FOLDER / "bounding_box_test" / "-1_c1s1_000000_00.jpg")
    market = DATASET_REGISTRY.get("Market1501")(root=str(root))
    assert {pid for _, pid, _ in market.train} == {f"market1501_{pid}" for pid in range(1, 5)}
    assert {camera for *_, camera in market.train} == {"market1501_0", "market1501_1"}
    assert {pid for _, pid, _ in market.gallery} == {5, 6, 7}
    assert {camera for *_, camera in market.gallery} == {0, 1}
    assert market.train == sorted(market.train) and len(market.train) == 16

    for name, folders, image in (
        ("DukeMTMC", "bounding_box_train query bounding_box_test", "0003_c8_f0046182.jpg"),
        ("VeRi", "image_train image_query image_test", "0003_c020_00016450_0.jpg"),
    ):
        cls = DATASET_REGISTRY.get(name)
        for folder in folders.split():
            (root / cls.dataset_dir / folder).mkdir(parents=True)
            junk.save(root / cls.dataset_dir / folder / image)
        assert [item[1:] for item in cls(root=str(root)).query] == [(3, 7 if name == "DukeMTMC" else 19)]

    junk.save(root / FOLDER / "query" / "somebody.jpg")
    with pytest.raises(ValueError, match="somebody.jpg: Market1501 reads person and camera from names like"):
        DATASET_REGISTRY.get("Market1501")(root=str(root)).query  # noqa: B018


@case("TimeoutError")
def identity_samplers(tmp_path, monkeypatch):
    from fastreid.data.samplers import BalancedIdentitySampler, NaiveIdentitySampler

    items = [("path", pid, camera) for pid in range(3) for camera in range(4)]
    for sampler in (BalancedIdentitySampler, NaiveIdentitySampler):
        with pytest.raises(ValueError, match="a batch takes 4 identities, and the training set has 3"), deadline(1):
            next(iter(sampler(items, 16, 4)))
        with pytest.raises(ValueError, match="does not divide into DATALOADER.NUM_INSTANCE = 4"), deadline(1):
            next(iter(sampler(items, 10, 4)))
        assert len({items[next(indices)][1] for indices in [iter(sampler(items, 12, 4))] for _ in range(12)}) == 3


# --- modeling


@case(r'assert model\(batch\) == \("meta", "meta"')
def inputs_to_device(tmp_path, monkeypatch):
    from fastreid.modeling import META_ARCH_REGISTRY, build_model

    from tiny_market import tiny_config

    @META_ARCH_REGISTRY.register()
    class WhereItIs(nn.Linear):
        def __init__(self, cfg):
            super().__init__(1, 1)

        def forward(self, batch):
            return batch["images"].device.type, batch["targets"].device.type, batch["img_paths"]

    model = build_model(tiny_config(tmp_path, "MODEL.META_ARCHITECTURE", "WhereItIs", "MODEL.DEVICE", "meta"))
    batch = {"images": torch.zeros(2), "targets": torch.zeros(2), "img_paths": ["a", "b"]}
    assert model(batch) == ("meta", "meta", ["a", "b"])
    assert batch["targets"].device.type == "cpu"


@case(r'assert model\(\{"images": images\}\).equal\(model\(images\)\)')
def preprocess_out_of_place(tmp_path, monkeypatch):
    from fastreid.modeling import build_model
    from fastreid.modeling.meta_arch.mgn import MGN

    from tiny_market import tiny_config

    model = build_model(tiny_config(tmp_path, "MODEL.HEADS.NUM_CLASSES", 4)).eval()
    images = torch.rand(2, 3, 64, 32) * 255
    before = images.clone()
    with torch.no_grad():
        assert model({"images": images}).equal(model(images))
        assert MGN.preprocess_image(model, {"images": images}).equal(model.preprocess_image(images))
    assert images.equal(before)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
    torch.testing.assert_close(model.preprocess_image(images), (images - mean) / std)


@case("FileNotFoundError.*RegNetX-200MF")
def regnet_files(tmp_path, monkeypatch):
    from fastreid.modeling.backbones import build_backbone

    from tiny_market import tiny_config

    def parameters(name, depth):
        backbone = build_backbone(tiny_config(tmp_path, "MODEL.BACKBONE.NAME", name, "MODEL.BACKBONE.DEPTH", depth))
        return sum(p.numel() for p in backbone.parameters())

    monkeypatch.chdir(tmp_path)
    alone = parameters("build_regnet_backbone", "200x")
    parameters("build_regnet_backbone", "200y")  # switches squeeze-and-excitation on, in fast-reid's global settings
    parameters("build_effnet_backbone", "b0")
    assert parameters("build_regnet_backbone", "200x") == alone


@case("import of gdown halted")
def pretrained_downloads(tmp_path, monkeypatch):
    from fastreid.modeling.backbones import build_backbone, resnet

    from tiny_market import tiny_config

    monkeypatch.setitem(sys.modules, "gdown", None)
    cfg = tiny_config(tmp_path, "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.DEPTH", "18x")
    weights = build_backbone(cfg).state_dict()
    torch.save(weights, tmp_path / "resnet18-00000000.pth")
    monkeypatch.setitem(resnet.model_urls, "18x", (tmp_path / "resnet18-00000000.pth").as_uri())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    cfg.MODEL.BACKBONE.PRETRAIN = True
    loaded = build_backbone(cfg).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


# --- training


@case(r"assert all\(not p.equal\(old\)")
def plain_parameters(tmp_path, monkeypatch):
    from fastreid.engine.defaults import build_optimizer

    from tiny_market import tiny_config

    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    cfg = tiny_config(tmp_path, "SOLVER.WEIGHT_DECAY_NORM", 0.0, "SOLVER.BIAS_LR_FACTOR", 2.0)
    for contiguous in ({}, {"contiguous": True}):
        optimizer, _ = build_optimizer(cfg, model, **contiguous)
        before = [p.clone() for p in model.parameters()]
        for _ in range(2):
            loss = model(torch.randn(8, 3)).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert all(not p.equal(old) for p, old in zip(model.parameters(), before, strict=True))
    lr, names = cfg.SOLVER.BASE_LR, {p: name for name, p in model.named_parameters()}
    groups = {(g["lr"], g["weight_decay"]): {names[p] for p in g["params"]} for g in optimizer.param_groups}
    assert groups == {
        (lr, 5e-4): {"0.weight", "2.weight"},
        (lr, 0.0): {"1.weight"},
        (2 * lr, 5e-4): {"0.bias", "1.bias", "2.bias"},
    }
    assert len(optimizer.param_groups) == len(groups)


@case("CUDA is required for AMP training")
def amp_trainer(tmp_path, monkeypatch):
    from fastreid.engine.train_loop import AMPTrainer
    from fastreid.utils.events import EventStorage

    model = LossModel()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = AMPTrainer(model, [torch.ones(2, 1)], optimizer, None)
    trainer.iter = 0
    before = model.weight.clone()
    with EventStorage() as storage:
        trainer.run_step()
    assert not model.weight.equal(before)
    assert model.dtype == (trainer.amp_type or torch.float32)  # bfloat16 if the CPU has it
    assert "total_loss" in storage.latest()


@case("ZeroDivisionError")
def zero_periods(tmp_path, monkeypatch):
    from fastreid.engine.hooks import EvalHook, PeriodicCheckpointer
    from fastreid.utils.checkpoint import Checkpointer

    evaluated = []
    trainer = bare_trainer(max_epoch=2)
    trainer.register_hooks(
        [
            EvalHook(0, lambda: evaluated.append(trainer.epoch)),
            PeriodicCheckpointer(Checkpointer(nn.Linear(1, 1), str(tmp_path)), 0),
        ]
    )
    trainer.train(0, 2, 1)
    assert evaluated == [1]
    assert {path.name for path in tmp_path.glob("*.pth")} == {"model_final.pth"}


@case(r"assert run\(1, \[40.0\]\) == 50.0")
def best_metric(tmp_path, monkeypatch):
    from fastreid.engine.hooks import EvalHook, PeriodicCheckpointer
    from fastreid.utils.checkpoint import Checkpointer

    def run(start_epoch, scores):
        trainer = bare_trainer(max_epoch=3, start_epoch=start_epoch)
        hook = PeriodicCheckpointer(Checkpointer(nn.Linear(1, 1), str(tmp_path)), 1)
        trainer.register_hooks([EvalHook(1, lambda: {"metric": scores.pop(0)}), hook])
        trainer.train(start_epoch, start_epoch + len(scores), 1)
        return torch.load(tmp_path / "model_best.pth")["metric"]

    assert run(0, [50.0]) == 50.0
    assert run(1, [40.0]) == 50.0
    assert run(2, [60.0]) == 60.0
    assert run(0, [30.0]) == 30.0  # a new run in an old folder is not a resumed one


@case("DID NOT RAISE")
def weights_only(tmp_path, monkeypatch):
    from fastreid.utils.checkpoint import Checkpointer

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made by the file"),)

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # the default of torch < 2.6
    model = nn.Linear(1, 1)
    torch.save({"model": model.state_dict(), "code": Code()}, tmp_path / "weights.pth")
    with pytest.raises(pickle.UnpicklingError):
        Checkpointer(model).load(str(tmp_path / "weights.pth"))
    assert not (tmp_path / "made by the file").exists()


@case("IndexError")
def no_test_set(tmp_path, monkeypatch):
    from fastreid.engine.hooks import PeriodicCheckpointer
    from fastreid.utils.checkpoint import Checkpointer

    trainer = bare_trainer(max_epoch=2)
    trainer.cfg.DATASETS.TESTS = ()
    trainer.register_hooks([PeriodicCheckpointer(Checkpointer(nn.Linear(1, 1), str(tmp_path)), 1)])
    trainer.train(0, 2, 1)
    assert {path.name for path in tmp_path.glob("*.pth")} == {"model_0000.pth", "model_final.pth"}


@case("no attribute 'epoch'")
def trainer_epoch(tmp_path, monkeypatch):
    from fastreid.engine.hooks import EvalHook

    trainer = bare_trainer(max_epoch=2)
    trainer.register_hooks([EvalHook(1, dict)])
    trainer.train(2, 2, 1)

    trainer = bare_trainer(max_epoch=2)
    trainer.register_hooks([EvalHook(1, dict)])
    trainer.before_train = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.train(0, 2, 1)


@case("No evaluation results obtained during training")
def finished_run(tmp_path, monkeypatch):
    from fastreid.engine import DefaultTrainer

    from tiny_market import draw_tiny_market, tiny_config

    monkeypatch.setattr("fastreid.data.build._root", str(draw_tiny_market(tmp_path)))
    cfg = tiny_config(tmp_path / "logs", "SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", -1)
    assert DefaultTrainer(cfg).train() is None
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=True)
    assert set(trainer.train()) >= {"mAP", "Rank-1"}


@case("ZeroDivisionError")
def iterations_per_epoch(tmp_path, monkeypatch):
    from fastreid.engine.defaults import build_lr_scheduler

    from tiny_market import tiny_config

    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="fewer images than one batch: SOLVER.IMS_PER_BATCH is 8; lower it"):
        build_lr_scheduler(tiny_config(tmp_path), optimizer, 0)
    assert set(build_lr_scheduler(tiny_config(tmp_path), optimizer, 1)) == {"lr_sched", "warmup_sched"}


@case("ZeroDivisionError")
def metric_printer(tmp_path, monkeypatch):
    from fastreid.utils.events import CommonMetricPrinter, EventStorage

    with EventStorage() as storage:
        storage.epoch = 0
        storage.put_scalar("total_loss", 1.0)
        printer = CommonMetricPrinter(max_iter=9)
        printer.write()
        printer.write()
        storage.iter = 1
        printer.write()
        assert printer._last_write[0] == 1


@case(r'\["score"\] for line in lines')
def last_metrics(tmp_path, monkeypatch):
    from fastreid.engine.hooks import EvalHook, PeriodicWriter
    from fastreid.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter

    for period in (1, 2):  # the final evaluation is then done after the last epoch, and after the training
        folder = tmp_path / str(period)
        folder.mkdir()
        trainer = bare_trainer(max_epoch=3)
        scores = iter([0.25, 0.5, 0.75] if period == 1 else [0.5, 0.75])
        writers = [CommonMetricPrinter(6), JSONWriter(str(folder / "metrics.json")), TensorboardXWriter(str(folder))]
        trainer.register_hooks(
            [EvalHook(period, lambda scores=scores: {"score": next(scores)}), PeriodicWriter(writers, 1)]
        )
        trainer.train(0, 3, 2)

        lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
        assert [line["score"] for line in lines if "score" in line][-1] == 0.75
        # Each scalar once per iteration.
        assert [line["iteration"] for line in lines if "total_loss" in line] == list(range(6))
        board = EventAccumulator(str(folder)).Reload()
        assert board.Scalars("score")[-1].value == 0.75
        assert [event.step for event in board.Scalars("total_loss")] == list(range(6))


# --- several processes


@case("device_ids")
def parallel_on_cpu(tmp_path, monkeypatch):
    import fastreid.engine.defaults

    with process_group(tmp_path):
        # As DefaultTrainer calls it.
        model = fastreid.engine.defaults.DistributedDataParallel(
            nn.Linear(2, 1), device_ids=[0], broadcast_buffers=False
        )
        assert isinstance(model, nn.parallel.DistributedDataParallel)
        model(torch.ones(3, 2)).sum().backward()
        assert model.module.weight.grad.tolist() == [[3.0, 3.0]]


@case("TypedStorage is deprecated")
def gathered_bytes(tmp_path, monkeypatch):
    from fastreid.utils import comm

    with process_group(tmp_path), warnings.catch_warnings():
        warnings.simplefilter("error")
        data = comm._serialize_to_tensor({"a": [1, 2]}, dist.group.WORLD)
    assert data.dtype == torch.uint8 and data.device.type == "cpu"
    assert pickle.loads(data.numpy().tobytes()) == {"a": [1, 2]}


# --- evaluation


@case("SystemExit: 1")
def no_compilation(tmp_path, monkeypatch):
    from fastreid.evaluation import ReidEvaluator

    from tiny_market import tiny_config

    make = tmp_path / "make"  # fails as on a machine without Cython
    make.write_text("#!/bin/sh\nexit 1\n")
    make.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    ReidEvaluator(tiny_config(tmp_path), num_query=1)


@case("inhomogeneous shape|setting an array element with a sequence")
def ranking(tmp_path, monkeypatch):
    from fastreid.evaluation.rank import evaluate_rank

    def brute_force(distmat, q_pids, g_pids, q_cams, g_cams, max_rank):
        cmc, precisions, penalties = np.zeros(max_rank), [], []
        for q in range(len(distmat)):
            kept = [g for g in distmat[q].argsort() if not (g_pids[g] == q_pids[q] and g_cams[g] == q_cams[q])]
            hits = [rank for rank, g in enumerate(kept) if g_pids[g] == q_pids[q]]
            if hits:
                cmc[hits[0] :] += 1
                precisions.append(np.mean([(j + 1) / (h + 1) for j, h in enumerate(hits)]))
                penalties.append(len(hits) / (hits[-1] + 1))
        return cmc / len(precisions), precisions, penalties

    rng = np.random.default_rng(0)
    for queries, gallery in ((7, 9), (30, 52), (600, 40)):  # fewer than 50 images are kept; more than one block
        distmat = rng.random((queries, gallery))
        people = rng.integers(0, 6, queries), rng.integers(0, 6, gallery)
        cameras = rng.integers(0, 3, queries), rng.integers(0, 3, gallery)
        for got, expected in zip(
            evaluate_rank(distmat, *people, *cameras), brute_force(distmat, *people, *cameras, 50), strict=True
        ):
            np.testing.assert_allclose(got, expected, atol=1e-6)
    with pytest.raises(ValueError, match="no query has an image of its person in the gallery"):
        evaluate_rank(distmat, people[0] + 6, people[1], *cameras)

    for path in sorted(GOLDEN.glob("rank_eval_*.npz")):
        golden = np.load(path)
        arguments = [golden[name] for name in ("distmat", "q_pids", "g_pids", "q_camids", "g_camids")]
        cmc, precision, penalty = evaluate_rank(*arguments, max_rank=int(golden["max_rank"]))
        np.testing.assert_allclose(cmc, golden["fastreid_cmc"], atol=1e-7)
        np.testing.assert_allclose(precision, golden["fastreid_ap"], atol=1e-12)
        np.testing.assert_allclose(penalty, golden["fastreid_inp"], atol=1e-12)
        np.testing.assert_allclose(precision.mean(), golden["ice_mAP"], atol=1e-12)


@case("Regex pattern did not match.*0 query and 3 gallery")
def test_set_halves(tmp_path, monkeypatch):
    from fastreid.data import CommDataset, build_reid_test_loader
    from fastreid.evaluation import ReidEvaluator, inference_on_dataset

    from tiny_market import tiny_config

    write_images(tmp_path, 3)
    items = [(str(path), 1, i) for i, path in enumerate(sorted(tmp_path.glob("*.png")))]
    dataset = CommDataset(items, lambda image: torch.from_numpy(np.array(image)).float(), relabel=False)
    model = ImageMeans()
    for num_query, message in ((0, "0 query and 3 gallery"), (3, "3 query and 0 gallery")):
        loader, _ = build_reid_test_loader(dataset, test_batch_size=2, num_query=num_query, num_workers=0)
        with pytest.raises(ValueError, match=message):
            inference_on_dataset(model, loader, ReidEvaluator(tiny_config(tmp_path), num_query))
    results = inference_on_dataset(model, loader, ReidEvaluator(tiny_config(tmp_path), 1))
    assert results["mAP"] == 100


@case(r"in assert \[module.training")
def module_modes(tmp_path, monkeypatch):
    from fastreid.evaluation import inference_context

    model = nn.Sequential(nn.BatchNorm1d(1), nn.Dropout())
    model[0].eval()  # frozen
    with pytest.raises(KeyError), inference_context(model):
        assert not model.training and not model[1].training
        raise KeyError
    assert [module.training for module in model.modules()] == [True, False, True]


@case("deprecated")
def euclidean_distance(tmp_path, monkeypatch):
    from fastreid.utils.compute_dist import build_dist

    a, b = torch.randn(5, 8), torch.randn(7, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distances = build_dist(a, b, "euclidean")
    np.testing.assert_allclose(distances, cdist(a, b, "sqeuclidean"), rtol=1e-4, atol=1e-4)


@case("NVIDIA driver|CUDA")
def rerank_without_gpu(tmp_path, monkeypatch):
    from fastreid.utils.compute_dist import build_dist

    generator = torch.Generator().manual_seed(0)
    people = torch.arange(4).repeat_interleave(8)
    features = nn.functional.normalize(torch.eye(4)[people] + 0.1 * torch.randn(32, 4, generator=generator))
    distances = build_dist(features[::2], features[1::2], "jaccard", k1=6, k2=2)
    assert distances.shape == (16, 16)
    same = people[::2, None] == people[None, 1::2]
    assert (distances[~same] == 1).all() and (distances[same] < 1).all()


@case("cast_integer_to_long_ptr")
def faiss_pointers(tmp_path, monkeypatch):
    from fastreid.utils.faiss_utils import search_index_pytorch

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)  # an index on the CPU uses the same pointers
    index = faiss.IndexFlatL2(2)
    index.add(np.array([[0, 0], [3, 4]], dtype=np.float32))
    distances, neighbours = search_index_pytorch(index, torch.tensor([[3.0, 4.0]]), 2)
    assert distances.tolist() == [[0, 25]] and neighbours.tolist() == [[1, 0]]


# --- shared by the cases


class LossModel(nn.Linear):
    def __init__(self):
        super().__init__(1, 1)

    def forward(self, batch):
        output = super().forward(batch)
        self.dtype = output.dtype
        return {"loss": output.square().mean()}


class ImageMeans(nn.Linear):
    def __init__(self):
        super().__init__(1, 1)

    def forward(self, batch):
        return batch["images"].mean((1, 2))


def write_images(folder: Path, count: int) -> None:
    for index in range(count):
        Image.new("RGB", (3, 5), (60 * index, 100, 200)).save(folder / f"{index}.png")


def bare_trainer(max_epoch: int, start_epoch: int = 0) -> Any:
    """A trainer whose step puts one scalar."""
    from fastreid.config import get_cfg
    from fastreid.engine.train_loop import TrainerBase

    trainer = TrainerBase()
    trainer.cfg = get_cfg()
    trainer.cfg.DATASETS.TESTS = ("Market1501",)
    trainer.start_epoch, trainer.max_epoch, trainer.max_iter = start_epoch, max_epoch, 2 * max_epoch
    trainer.run_step = lambda: trainer.storage.put_scalar("total_loss", 1.0)
    return trainer


class process_group:
    """A group of one process.

    Its object is kept: the destructor joins a thread that may itself wait for the interpreter, a deadlock. The process
    of a case ends by ``os._exit``, without destructors.
    """

    kept: ClassVar[list[Any]] = []

    def __init__(self, folder: Path):
        self.url = f"file://{folder / 'store'}"

    def __enter__(self) -> None:
        dist.init_process_group("gloo", init_method=self.url, world_size=1, rank=0)

    def __exit__(self, *exception: Any) -> None:
        self.kept.append(dist.group.WORLD)
        dist.destroy_process_group()


class deadline:
    """TimeoutError after some seconds."""

    def __init__(self, seconds: int):
        self.seconds = seconds

    def __enter__(self) -> None:
        def stop(*_: Any) -> None:
            raise TimeoutError

        signal.signal(signal.SIGALRM, stop)
        signal.alarm(self.seconds)

    def __exit__(self, *exception: Any) -> None:
        signal.alarm(0)


# --- running them


def run(names: list[str], skip: tuple[str, ...]) -> list[str]:
    """How the cases end in one process, without the patches ``skip``: each "passed", or its error."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, json.dumps([_outcome(name, skip)[:2000] for name in names]).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        outcomes = pipe.read()
    os.waitpid(child, 0)
    return json.loads(outcomes or "[]") or ["the process died"] * len(names)


def _outcome(name: str, skip: tuple[str, ...]) -> str:
    # Importing the package would apply all patches: replace it by an empty one.
    package = sys.modules.setdefault("fastreid_ice", types.ModuleType("fastreid_ice"))
    package.__path__ = [str(ROOT / "fastreid_ice")]
    try:
        with deadline(SECONDS), tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
            from fastreid_ice import compat

            compat.apply(skip)
            CASES[name].check(Path(folder), monkeypatch)
    except BaseException as error:  # some patches prevent a SystemExit
        here = [frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.filename == __file__]
        return f"{type(error).__name__}: {error} in {here[-1]}"
    return "passed"


if __name__ == "__main__":
    names = sys.argv[1:] or list(CASES)
    output, sys.stdout = sys.stdout, sys.stderr  # the cases print
    passed = dict(zip(names, run(names, ()), strict=True))
    json.dump({name: [passed[name], *run([name], (name,))] for name in names}, output)
