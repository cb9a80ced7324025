"""Two real processes over gloo: they agree where they must, and share the work where they should."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.engine.train_loop import HookBase
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastreid_ice.clusterers import CLUSTERER_REGISTRY, JaccardDBSCAN
from fastreid_ice.core import Clusters, ImageTable, hard_instance_loss, soft_consistency_loss
from fastreid_ice.data import build_feature_loader, build_training_set
from fastreid_ice.engine import HOOK_REGISTRY, UnsupervisedTrainer, extract_features
from fastreid_ice.modeling.gather import encode_shuffled, gather_batch
from fastreid_ice.testing import in_processes
from support import train, two_layers

pytestmark = pytest.mark.slow


class Witness(HookBase):
    """Records, in each process, what the processes must agree on, and the next batches."""

    def __init__(self, cfg: CfgNode) -> None:
        self.file = Path(cfg.OUTPUT_DIR) / f"rank{comm.get_rank()}.pt"

    def after_train(self) -> None:
        trainer = self.trainer
        model = trainer.model.module
        seen = {
            "weights": dict(model.named_parameters()),
            "memories": dict(model.losses.named_buffers()),
            "labels": next(hook.labels for hook in trainer._hooks if hasattr(hook, "labels")),
            "drawn": [next(trainer.data_loader)["indices"] for _ in range(3)],
        }
        torch.save(seen, self.file)


class Recorded(JaccardDBSCAN):
    """Records, in each process, its last input and output."""

    def __call__(self, features: Tensor, known: ImageTable) -> Clusters:
        clusters = super().__call__(features, known)
        torch.save(((features, known), clusters.labels), f"clusters{comm.get_rank()}.pt")
        return clusters


def run_training(cfg: CfgNode) -> None:
    HOOK_REGISTRY.register(Witness)
    CLUSTERER_REGISTRY.register(Recorded)
    os.chdir(cfg.OUTPUT_DIR)
    train(cfg)


def test_training_in_two_processes(cfg: CfgNode) -> None:
    """All losses at once; the bank draws at random three of the four images of a cluster in a batch.

    Only the first process reads the corrections, and all get labels that keep them.
    """
    cfg.HOOKS = ("Witness", "ReclusterHook", "MomentumHook")
    cfg.CLUSTER.FEATURES = "online"
    cfg.CLUSTER.NAME = "Recorded"
    cfg.MODEL.FROZEN = ("backbone.net.conv1",)
    Path(cfg.OUTPUT_DIR).mkdir()
    cfg.MODEL.LOSSES.NAME = (*cfg.MODEL.LOSSES.NAME, "DiscrepantProxyLoss", "MultiInstanceLoss")
    cfg.MODEL.LOSSES.MULTI_INSTANCE.NUM_INSTANCES = 3
    paths = build_training_set(cfg).paths
    cfg.CORRECTIONS = os.path.join(cfg.OUTPUT_DIR, "corrections.csv")
    Path(cfg.CORRECTIONS).write_text(f"image,relation,other\n{paths[0]},same,{paths[20]}\n{paths[1]},nobody,\n")
    in_processes(run_training, 2, cfg)
    first, second = (torch.load(Path(cfg.OUTPUT_DIR) / f"rank{rank}.pt", weights_only=False) for rank in (0, 1))
    for part in ("weights", "memories"):
        assert first[part].keys() == second[part].keys() and first[part]
        for name, value in first[part].items():
            assert torch.equal(value, second[part][name]), name
    assert torch.equal(first["labels"], second["labels"])
    assert first["labels"][0] == first["labels"][20] >= 0 and first["labels"][1] == -1
    corrections = None
    for rank in (0, 1):
        (features, known), answered = torch.load(Path(cfg.OUTPUT_DIR) / f"clusters{rank}.pt", weights_only=False)
        assert (known.corrections is None) == (rank == 1)
        corrections = known.corrections or corrections
        alone = JaccardDBSCAN.from_config(cfg)(features, replace(known, corrections=corrections)).labels
        assert torch.equal(answered, alone) and torch.equal(first["labels"], alone), "as one process would cluster"
    for mine, theirs in zip(first["drawn"], second["drawn"], strict=True):
        assert len(mine) == len(theirs) == cfg.SOLVER.IMS_PER_BATCH // 2
        assert not set(mine.tolist()) & set(theirs.tolist()), "each process draws its own part of the batch"
    assert (Path(cfg.OUTPUT_DIR) / "model_final.pth").is_file()


def build_two_layers(cfg: CfgNode) -> nn.Module:
    return two_layers()


def run_with_and_without_compiling(cfg: CfgNode) -> None:
    BACKBONE_REGISTRY.register(build_two_layers)
    HOOK_REGISTRY.register(Witness)
    # Scalar code: otherwise each process first compiles and starts a probe for every vector extension of the CPU.
    torch._inductor.config.cpp.vec_isa_ok = False
    folder = cfg.OUTPUT_DIR
    for cfg.MODEL.COMPILE in (False, True):
        cfg.OUTPUT_DIR = os.path.join(folder, f"compiled-{cfg.MODEL.COMPILE}")
        train(cfg)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_training_compiled_in_two_processes(cfg: CfgNode) -> None:
    """Two steps, with the same weights as without compiling, up to 1e-5."""
    cfg.HOOKS = ("Witness", "ReclusterHook", "MomentumHook")
    cfg.CLUSTER.NAME = "GroundTruth"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FEAT_DIM = "build_two_layers", 16
    cfg.SOLVER.IMS_PER_BATCH = 16  # 8 for each process
    cfg.SOLVER.OPT, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_EPOCH = "SGD", 0.01, 1
    cfg.TEST.EVAL_PERIOD = -1
    in_processes(run_with_and_without_compiling, 2, cfg)

    def weights(compiled: bool, rank: int) -> dict[str, Tensor]:
        return torch.load(Path(cfg.OUTPUT_DIR, f"compiled-{compiled}", f"rank{rank}.pt"), weights_only=False)["weights"]

    expected, found = weights(False, 0), weights(True, 0)
    for name, value in found.items():
        assert torch.equal(value, weights(True, 1)[name]), name
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    moved = found["backbone.0.weight"] - found["momentum.backbone.0.weight"]
    assert moved.abs().max() > 1e-3, "the steps change them by much more"


def run_extraction(cfg: CfgNode, folder: Path, number: int) -> None:
    """Of the first images; the fourth is missing."""
    torch.manual_seed(0)
    images = build_training_set(cfg)
    images.paths[3:4] = ["gone.jpg"]
    loader = build_feature_loader(cfg, replace(images, paths=images.paths[:number]))
    model = UnsupervisedTrainer.build_model(cfg)
    found = extract_features(model, loader, "momentum", amp=cfg.SOLVER.AMP.ENABLED)
    torch.save(found, folder / f"{comm.get_rank()}.pt")


@pytest.mark.parametrize(("number", "everything"), [(53, False), (53, True), (1, True)])
def test_features_are_gathered_in_order(cfg: CfgNode, tmp_path: Path, number: int, everything: bool) -> None:
    """For an odd number, and if a process has none; from files, and by workers from a cache, in lower precision."""
    cfg.DATALOADER.UNREADABLE = "skip"
    run_extraction(cfg, tmp_path, number)
    alone, usable = torch.load(tmp_path / "0.pt")
    if everything:
        cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.CACHE, cfg.SOLVER.AMP.ENABLED = 1, "ram", True
    in_processes(run_extraction, 2, cfg, tmp_path, number)
    (first, readable), (second, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(first, second) and torch.equal(readable, usable)
    assert (~usable).nonzero().flatten().tolist() == ([3] if number > 3 else [])
    torch.testing.assert_close(first, alone, rtol=0, atol=0.03 if everything else 1e-5)


def run_evaluation(cfg: CfgNode, folder: Path) -> None:
    torch.manual_seed(0)
    model = UnsupervisedTrainer.build_model(cfg)
    torch.save(dict(UnsupervisedTrainer.test(cfg, model)), folder / f"{comm.get_rank()}.pt")


def test_two_processes_evaluate_as_one_does(cfg: CfgNode, tmp_path: Path) -> None:
    cfg.TEST.AQE.ENABLED = cfg.TEST.RERANK.ENABLED = True
    cfg.TEST.RERANK.K1 = 8
    run_evaluation(cfg, tmp_path)
    alone = torch.load(tmp_path / "0.pt", weights_only=False)
    in_processes(run_evaluation, 2, cfg, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    assert first == pytest.approx(alone, abs=1e-3) and alone["mAP"] > 5
    assert not second


def whole_batch() -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    images, keys = torch.randn(8, 6, generator=generator), torch.randn(8, 5, generator=generator)
    return nn.Linear(6, 5), images, keys, torch.tensor([0, 0, 1, 1, 2, 2, 0, 1])


def loss_of(features: Tensor, keys: Tensor, labels: Tensor) -> Tensor:
    return hard_instance_loss(features, keys, labels) + soft_consistency_loss(features, keys, keys)


def run_gathered_step(folder: Path) -> None:
    model, images, keys, labels = whole_batch()
    model = DistributedDataParallel(model)
    mine = slice(4 * comm.get_rank(), 4 * comm.get_rank() + 4)
    features = gather_batch(model(images[mine]))
    loss_of(features, gather_batch(keys[mine]), gather_batch(labels[mine])).backward()
    torch.save([parameter.grad for parameter in model.parameters()], folder / f"{comm.get_rank()}.pt")


def test_gathered_loss_has_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    """Instance losses see the batch of all processes, and one step equals that of a single process."""
    in_processes(run_gathered_step, 2, tmp_path)
    model, images, keys, labels = whole_batch()
    loss_of(model(images), keys, labels).backward()
    for rank in (0, 1):
        for gradient, parameter in zip(torch.load(tmp_path / f"{rank}.pt"), model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad)


def run_shuffled(folder: Path) -> None:
    images = torch.arange(12.0).view(6, 2)[3 * comm.get_rank() :][:3]
    batches = []

    def encode(part: Tensor) -> Tensor:
        batches.append(part)
        return 2 * part

    torch.manual_seed(3 + comm.get_rank())
    outputs = [encode_shuffled(encode, images) for _ in range(5)]
    torch.save((outputs, batches), folder / f"{comm.get_rank()}.pt")


def test_shuffled_batches_mix_processes_and_come_back_in_order(tmp_path: Path) -> None:
    in_processes(run_shuffled, 2, tmp_path)
    (first, seen), (second, unseen) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    everything = torch.arange(12.0).view(6, 2)
    for mine, theirs in zip(first, second, strict=True):
        assert torch.equal(mine, 2 * everything) and torch.equal(theirs, mine)
    assert any(not torch.equal(part, everything[:3]) for part in seen)
    for part, other in zip(seen, unseen, strict=True):
        assert torch.equal(torch.cat([part, other]).sort(0).values, everything)


def test_one_process_is_the_identity() -> None:
    images = F.normalize(torch.randn(4, 3))
    assert gather_batch(images) is images
    assert torch.equal(encode_shuffled(lambda part: part + 1, images), images + 1)
