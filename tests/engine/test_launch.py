"""Processes over gloo on the CPU."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist

from fastreid_ice.engine.launch import launch
from tiny_market import draw_tiny_market, tiny_config


def train_and_save(folder):
    """Two steps of fast-reid's own trainer; the state before and after, of each process."""
    from fastreid.engine import DefaultTrainer
    from fastreid.utils import comm

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


def save_arguments(folder, word):
    (folder / "word").write_text(f"{word} {dist.is_initialized()}")


@pytest.mark.slow
def test_two_processes_train_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTREID_DATASETS", str(draw_tiny_market(tmp_path / "data")))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launch(train_and_save, 2, args=(tmp_path,), backend="gloo")

    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    assert first["ranks"] == (0, 0, 2, 2) and second["ranks"] == (1, 1, 2, 2)
    assert first["backend"] == "gloo"
    assert first["start_method"] == torch.multiprocessing.get_start_method()  # of the workers of a loader
    assert first["threads"] == max(1, len(os.sched_getaffinity(0)) // 2)
    for name, weight in first["after"].items():
        assert weight.equal(second["after"][name]), name
        if ".gate.fc" not in name:  # a gate of one ReLU can be dead
            assert not weight.equal(first["before"][name]), name
    assert first["results"]["mAP"] > 0 and second["results"] is None


def test_one_process_runs_in_place(tmp_path):
    launch(save_arguments, 1, dist_url="auto", args=(tmp_path, "here"))
    assert (tmp_path / "word").read_text() == "here False"


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"num_processes_per_machine": 0}, "cannot start 0 processes on machine 0 of 1"),
        ({"num_processes_per_machine": 1, "num_machines": 2, "machine_rank": 2}, "on machine 2 of 2"),
        ({"num_processes_per_machine": 1, "num_machines": 2}, "several machines need a --dist-url"),
        ({"num_processes_per_machine": 9999, "backend": "nccl"}, "NCCL needs a GPU for each of the 9999 processes"),
    ],
)
def test_impossible_numbers(numbers, message):
    with pytest.raises(ValueError, match=message):
        launch(print, **numbers)
