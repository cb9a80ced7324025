"""A step in which the host does not wait for the device, and losses that are logged nevertheless."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fastreid.config import CfgNode
from fastreid.utils.events import EventStorage
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastreid_ice import InputError
from fastreid_ice.engine import UnsupervisedTrainer
from fastreid_ice.engine.loss_log import LossLog, NotFinite
from fastreid_ice.losses import HardInstanceLoss, Step
from support import OSNET, train

METHODS = {
    "ICE": {},
    "ICE, other cameras": {"MODEL.LOSSES.CROSS_CAMERA.POSITIVES": "other_cameras"},
    "DCMIP": {
        "MODEL.LOSSES.NAME": ("DiscrepantProxyLoss", "MultiInstanceLoss"),
        "MODEL.LOSSES.DISCREPANT_PROXY.MARGINS": (0.2, 0.0),
        "CLUSTER.FEATURES": "online",
    },
    "Cluster Contrast": {
        "MODEL.LOSSES.NAME": ("DiscrepantProxyLoss",),
        "MODEL.LOSSES.DISCREPANT_PROXY.UPDATES": ("each",),
        "CLUSTER.FEATURES": "online",
    },
    "DCMIP, positives of the batch": {
        "MODEL.LOSSES.NAME": ("DiscrepantProxyLoss", "MultiInstanceLoss"),
        "MODEL.LOSSES.MULTI_INSTANCE.POSITIVE": "batch",
    },
}
# update_each has as many turns as the largest cluster of the batch has members, which is a number on the device.
WAITING = {"Cluster Contrast": ["_local_scalar_dense"]}


class Waits(TorchDispatchMode):
    """Collects the operations for which the host would wait for a GPU: reading values, and copies to the GPU."""

    OPERATIONS = (
        "_local_scalar_dense",
        "bincount",
        "equal",
        "is_nonzero",
        "lift_fresh",
        "masked_select",
        "nonzero",
        "unique_consecutive",
        "unique_dim",
        "_unique2",
    )

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += 1
        by_mask = name.startswith("index") and len(args) > 1 and isinstance(args[1], (list, tuple))
        if name in self.OPERATIONS or (by_mask and any(i is not None and i.dtype == torch.bool for i in args[1])):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


class Steps:
    """A trainer that has clustered and has two batches, for a step without loading."""

    def __init__(self, cfg: CfgNode, storage: EventStorage) -> None:
        Path(cfg.OUTPUT_DIR).mkdir()
        cfg.TEST.BEFORE_TRAINING = False
        torch.manual_seed(cfg.SEED)
        self.trainer = trainer = UnsupervisedTrainer(cfg)
        trainer.storage, trainer.epoch, trainer.iter = storage, 0, 0
        trainer._hooks[0].before_epoch()  # ReclusterHook
        batches = [next(trainer.data_loader) for _ in range(2)]
        if torch.device(cfg.MODEL.DEVICE).type == "cuda":
            batches = [{name: value.pin_memory() for name, value in batch.items()} for batch in batches]
        trainer._trainer._data_loader_iter = iter(batches)

    def run(self) -> None:
        self.trainer.run_step()
        self.trainer.model.after_step()
        self.trainer.iter += 1


def method(cfg: CfgNode, name: str) -> CfgNode:
    cfg.merge_from_list([part for item in (OSNET | METHODS[name]).items() for part in item])
    return cfg


@pytest.mark.parametrize("name", METHODS)
def test_which_operations_of_a_step_wait(cfg: CfgNode, name: str) -> None:
    """All but the optimiser, which counts its steps on the host."""
    with EventStorage() as storage:
        steps = Steps(method(cfg, name), storage)
        waits = Waits()
        optimizer = steps.trainer.optimizer
        optimizer.register_step_pre_hook(lambda *_: waits.__exit__(None, None, None))
        optimizer.register_step_post_hook(lambda *_: waits.__enter__())
        with waits:
            steps.run()
            steps.run()
    assert waits.seen == 2 * WAITING.get(name, []) and waits.count > 1000
    assert len(storage.history("total_loss").values()) == 2


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x[0]),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: x.unique(),
    ],
)
def test_what_waits_is_seen(wait: Any) -> None:
    with Waits() as waits:
        wait(torch.ones(3))
    assert len(waits.seen) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("name", sorted(METHODS.keys() - WAITING))
def test_no_step_waits_for_the_gpu(cfg: CfgNode, name: str, amp: bool) -> None:
    cfg.MODEL.DEVICE, cfg.SOLVER.AMP.ENABLED = "cuda", amp
    if amp and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("the gradient scaler of float16 waits")
    with EventStorage() as storage:
        steps = Steps(method(cfg, name), storage)
        steps.run()
        torch.cuda.set_sync_debug_mode("error")
        try:
            steps.run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        steps.trainer._store_losses(wait=True)
    assert [iteration for _, iteration in storage.history("total_loss").values()] == [0, 1]


def test_losses_are_stored_at_their_iteration() -> None:
    log = LossLog()
    with EventStorage() as storage:
        storage.iter = 7
        log.add(5, {"a": torch.tensor(0.5), "b": torch.tensor(2.0)}, data_time=0.1)
        log.add(6, {"a": torch.tensor(1.5), "b": torch.tensor(3.0)}, data_time=0.2)
        log.store(storage, wait=False)
        assert storage.iter == 7
    assert storage.history("a").values() == [(0.5, 5), (1.5, 6)]
    assert storage.history("total_loss").values() == [(2.5, 5), (4.5, 6)]
    assert storage.history("data_time").values() == [(0.1, 5), (0.2, 6)]


def test_what_is_not_finite_is_named() -> None:
    log = LossLog()
    with EventStorage() as storage:
        log.add(3, {"a": torch.tensor(1.0), "b": torch.tensor(math.nan), "c": torch.tensor(-math.inf)}, data_time=0.1)
        with pytest.raises(NotFinite, match="^b is nan and c is -inf at iteration 3$"):
            log.store(storage, wait=False)


@pytest.mark.gpu
def test_losses_of_a_gpu_are_stored_when_they_have_arrived() -> None:
    """Nothing while the GPU is busy, everything after waiting for it."""
    log = LossLog()
    with EventStorage() as storage:
        torch.cuda._sleep(2_000_000_000)
        log.add(0, {"a": torch.ones((), device="cuda")}, data_time=0.1)
        log.add(1, {"a": torch.full((), math.nan, device="cuda")}, data_time=0.1)
        log.store(storage, wait=False)
        assert "a" not in storage.histories()
        with pytest.raises(NotFinite, match="a is nan at iteration 1"):
            log.store(storage, wait=True)
        assert storage.history("a").values() == [(1.0, 0)]


@pytest.mark.gpu
def test_a_run_on_a_gpu_ends_before_the_next_checkpoint(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """About one step after the loss became NaN or infinite, and the message names the right step."""
    forward, calls = HardInstanceLoss.forward, []

    def broken(self: HardInstanceLoss, step: Step) -> Tensor:
        calls.append(step)
        return forward(self, step) * (math.nan if len(calls) > 2 else 1)

    monkeypatch.setattr(HardInstanceLoss, "forward", broken)
    cfg.MODEL.DEVICE = "cuda"
    with pytest.raises(InputError, match=r"loss_hard_instance is nan at iteration 2 \(epoch 2\).*model_0000.pth"):
        train(cfg)
    assert not Path(cfg.OUTPUT_DIR, "model_final.pth").exists()
