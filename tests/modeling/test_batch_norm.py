"""Ghost batch norm: one process trains as four would, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fastreid.config import CfgNode
from fastreid.layers import get_norm
from fastreid.modeling.meta_arch import build_model
from fastreid.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastreid_ice import InputError
from fastreid_ice.engine import check_config
from fastreid_ice.modeling.batch_norm import split_batch_norms
from fastreid_ice.testing import in_processes
from support import osnet_config, small_config

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
STEPS = 2


def four_gpu_config(bn_splits: int = 4) -> CfgNode:
    """The losses without a memory, on 16 images."""
    return osnet_config(
        MODEL__BN_SPLITS=bn_splits,
        MODEL__LOSSES__NAME=("HardInstanceLoss", "SoftConsistencyLoss"),
        MODEL__BACKBONE__WITH_IBN=True,
        SOLVER__IMS_PER_BATCH=16,
    )


def train_steps() -> dict[str, object]:
    """Steps of this process on its share of the same batches, in float64; returns their results."""
    torch.manual_seed(0)
    model = build_model(four_gpu_config()).double().train()
    wrapped = DistributedDataParallel(model, broadcast_buffers=False) if comm.get_world_size() > 1 else model
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    outputs = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        views = {
            view: 255 * torch.rand(16, 3, 32, 16, generator=generator, dtype=torch.float64)
            for view in ("online", "momentum", "momentum_weak")
        }
        ids = torch.arange(16)
        batch = views | {"targets": ids // 4, "camids": ids % 2, "indices": ids}
        torch.manual_seed(step)  # orders the shuffled momentum batches, as drawn by the first process
        losses = wrapped({name: part.chunk(comm.get_world_size())[comm.get_rank()] for name, part in batch.items()})
        outputs.append({name: loss.detach() for name, loss in losses.items()} | vars(model._step))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        model.after_step()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {"outputs": outputs, "gradients": gradients, "state": model.state_dict()}


def save_steps(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.save(train_steps(), folder / f"{comm.get_world_size()}-{comm.get_rank()}.pt")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in every process started here: their number changes the last digit of sums, which a step makes 1e-9."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_one_process_equals_several(processes: int, tmp_path: Path, one_thread: None) -> None:
    """Losses, features of every view, gradients, and the checkpoint with its running statistics."""
    in_processes(save_steps, processes, tmp_path)
    expected = torch.load(tmp_path / f"{processes}-0.pt", weights_only=False)
    alone = train_steps()
    assert any(name.endswith("running_var") for name in expected["state"])
    for part in ("outputs", "gradients", "state"):
        torch.testing.assert_close(
            alone[part], expected[part], rtol=1e-9, atol=1e-10, msg=lambda m, p=part: f"{p}: {m}"
        )


@pytest.mark.parametrize(
    ("norm", "shape"),
    [(nn.BatchNorm1d(3), (8, 3)), (nn.BatchNorm1d(3), (8, 3, 5)), (get_norm("BN", 3, bias_freeze=True), (8, 3, 4, 2))],
    ids=["1d", "1d sequence", "2d"],
)
def test_each_part_has_its_own_statistics(norm: nn.Module, shape: tuple[int, ...]) -> None:
    features = torch.randn(shape) * torch.arange(1.0, 9.0).view(-1, *[1] * (len(shape) - 1))
    split_batch_norms(norm, 4)
    output = norm(features)
    dims = [d for d in range(len(shape)) if d != 1]
    expected = [
        (part - part.mean(dims, keepdim=True)) / (part.var(dims, correction=0, keepdim=True) + norm.eps).sqrt()
        for part in features.chunk(4)
    ]
    torch.testing.assert_close(output, torch.cat(expected))
    first = features[:2]
    torch.testing.assert_close(norm.running_mean, 0.1 * first.mean(dims))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * first.var(dims))
    assert norm.num_batches_tracked == 1


def test_the_memory_format_is_kept() -> None:
    norm = nn.BatchNorm2d(4)
    split_batch_norms(norm, 2)
    images = torch.randn(4, 4, 3, 3).to(memory_format=torch.channels_last)
    assert norm(images).is_contiguous(memory_format=torch.channels_last)


def models() -> tuple[nn.Module, nn.Module]:
    """With 4 parts and without, with the same weights."""
    split, plain = build_model(four_gpu_config()).train(), build_model(four_gpu_config(bn_splits=1)).train()
    plain.load_state_dict(split.state_dict())
    return split, plain


def test_every_batch_norm_splits_and_evaluation_does_not() -> None:
    split, plain = models()
    norms = [module for module in split.modules() if isinstance(module, NORMS)]
    assert len(norms) == sum(isinstance(module, NORMS) for module in plain.modules()) > 50
    assert all(norm.num_splits == 4 for norm in norms)
    assert list(split.state_dict()) == list(plain.state_dict())
    assert not any(hasattr(module, "num_splits") for module in plain.modules())
    images = 255 * torch.rand(3, 3, 32, 16)
    with torch.no_grad():
        assert torch.equal(split.eval()(images), plain.eval()(images))


def shuffled_keys(model: nn.Module, images: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return model._encode_keys(images)


def test_momentum_batches_are_shuffled_over_the_parts() -> None:
    """Which images share statistics with a key depends on the draw, not on its neighbours in the batch."""
    split, plain = models()
    images = 255 * torch.rand(16, 3, 32, 16)
    assert torch.equal(shuffled_keys(plain, images, 0), shuffled_keys(plain, images, 1))
    assert not torch.allclose(shuffled_keys(split, images, 0), shuffled_keys(split, images, 1), atol=1e-3)
    split.shuffle_bn = False
    assert torch.equal(shuffled_keys(split, images, 0), shuffled_keys(split, images, 1))


def test_what_cannot_be_split() -> None:
    norm = nn.BatchNorm1d(3)
    split_batch_norms(norm, 4)
    with pytest.raises(
        ValueError, match="a batch of 6 cannot be split into 4 equal parts; change SOLVER.IMS_PER_BATCH"
    ):
        norm(torch.randn(6, 3))
    assert norm.eval()(torch.randn(6, 3)).shape == (6, 3)
    with pytest.raises(InputError, match="MODEL.BN_SPLITS splits what syncBN joins"):
        split_batch_norms(nn.Sequential(get_norm("syncBN", 3)), 4)
    cfg = small_config(MODEL__BN_SPLITS=3)
    with pytest.raises(InputError, match="MODEL.BN_SPLITS 3 must divide the batch, SOLVER.IMS_PER_BATCH 8"):
        build_model(cfg)
    for splits, processes in ((0, 1), (3, 1)):
        cfg.MODEL.BN_SPLITS = splits
        with pytest.raises(InputError, match=f"MODEL.BN_SPLITS {splits} must divide the batch"):
            check_config(cfg, num_processes=processes)
    cfg.MODEL.BN_SPLITS = 8
    with pytest.raises(InputError, match="MODEL.BN_SPLITS 8 leaves one image to each part of the batch"):
        check_config(cfg)
    cfg = small_config(MODEL__BN_SPLITS=4, SOLVER__IMS_PER_BATCH=24)
    with pytest.raises(InputError, match="MODEL.BN_SPLITS 4 must be a multiple of the number of processes, 3"):
        check_config(cfg, num_processes=3)
    check_config(small_config(MODEL__BN_SPLITS=4, SOLVER__IMS_PER_BATCH=32), num_processes=8)
