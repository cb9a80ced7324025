"""Processes over gloo on the CPU."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist

from fastreid_ice import InputError
from fastreid_ice.commands.agent import run_processes
from fastreid_ice.processes import TASKS, is_in_group
from fastreid_ice.testing import in_processes
from tiny_market import draw_tiny_market, tiny_config


def train_and_save(folder):
    """Two steps of fast-reid's own trainer; saves the state of each process before and after."""
    import fastreid.data.build
    from fastreid.engine import DefaultTrainer
    from fastreid.utils import comm

    fastreid.data.build._root = os.environ["FASTREID_DATASETS"]  # which it read when the server of processes started
    torch.manual_seed(0)
    trainer = DefaultTrainer(tiny_config(folder / "logs", "SOLVER.MAX_EPOCH", 1))
    before = {name: p.detach().clone() for name, p in trainer.model.module.named_parameters()}
    results = trainer.train()
    torch.save(
        {
            "before": before,
            "after": dict(trainer.model.module.named_parameters()),
            "results": results,
            "ranks": (comm.get_rank(), comm.get_local_rank(), comm.get_world_size(), comm.get_local_size()),
            "backend": dist.get_backend(),
            "start_method": torch.multiprocessing.get_start_method(),
            "threads": torch.get_num_threads(),
        },
        folder / f"{comm.get_rank()}.pt",
    )


@pytest.mark.slow
def test_two_processes_train_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTREID_DATASETS", str(draw_tiny_market(tmp_path / "data")))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    in_processes(train_and_save, 2, tmp_path)

    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    assert first["ranks"] == (0, 0, 2, 2) and second["ranks"] == (1, 1, 2, 2)
    assert first["backend"] == "gloo"
    assert first["start_method"] == torch.multiprocessing.get_start_method()  # for the workers of a loader
    assert first["threads"] == max(1, len(os.sched_getaffinity(0)) // 2)
    for name, weight in first["after"].items():
        assert weight.equal(second["after"][name]), name
        if ".gate.fc" not in name:  # a gate of one ReLU can be dead
            assert not weight.equal(first["before"][name]), name
    assert first["results"]["mAP"] > 0 and second["results"] is None


@pytest.mark.parametrize(
    ("number", "machines", "message"),
    [
        (0, {}, "--num-gpus 0 --num-machines 1 .*: at least one process"),
        (1, {"num_machines": 2, "machine_rank": 2}, "--machine-rank 2 .*: at least one process, ranks from 0"),
        (1, {"num_machines": 2}, "--num-machines 2 needs a --dist-url that all machines reach"),
        (1, {"num_machines": 2, "dist_url": "tcp://10.0.0.1"}, "--num-machines 2 needs a --dist-url"),
        (2, {"max_restarts": -1}, "--max-restarts -1: .* restarts from 0"),
    ],
)
def test_impossible_numbers(number, machines, message):
    with pytest.raises(InputError, match=message):
        run_processes([], number, **machines)


def test_processes_that_do_not_know_of_one_another(monkeypatch):
    """Such as those of srun without torchrun, each of which would train a separate model."""
    for name in ("RANK", *TASKS):
        monkeypatch.delenv(name, raising=False)
    assert not is_in_group()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert not is_in_group(num_machines=2)
    with pytest.raises(InputError, match="2 processes were started .SLURM_STEP_NUM_TASKS. .* start one torchrun on"):
        is_in_group()
    monkeypatch.setenv("RANK", "1")
    assert is_in_group()
