"""The benchmarks as a user runs them, on sizes too small for meaningful times."""

from __future__ import annotations

import os
import re
import signal
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import __main__ as benchmark
from benchmarks import input as benchmark_input
from benchmarks.measuring import Clock, Measurement, Worker, draw_people
from benchmarks.recluster import table
from benchmarks.sharing import share
from fastreid_ice.compat.training import mixed_precision
from fastreid_ice.testing import in_processes
from processes import run_command
from support import ROOT, SMALL, small_config


def run(*arguments: str) -> str:
    """What the command prints."""
    done = run_command("bench", *arguments, "--threads", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cells(text: str) -> list[list[str]]:
    """The rows of the table in a text, without its header."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return rows[2:]


@pytest.mark.slow
def test_recluster_beside_its_baselines() -> None:
    printed = run("recluster", "--images", "400", "--dim", "24", "--repeats", "2", "--dense")
    rows = {row[0]: row[1:] for row in cells(printed)}
    assert list(rows) == [
        "recluster",
        "- neighbors",
        "- Jaccard graph",
        "- DBSCAN",
        "recluster by ca_jaccard",
        "- camera-aware graph, with its search",
        "faiss IndexFlatIP on CPU, search alone",
        "float32 product + top-k, search alone",
        "dense oracle",
    ]
    assert rows["faiss IndexFlatIP on CPU, search alone"][3] == "1.00"
    for seconds, fastest, slowest, *_ in rows.values():
        assert float(fastest) <= float(seconds) <= float(slowest)
    assert "labels equal to those of the dense oracle: yes" in printed
    assert "labels equal to those of neighbors searched in float64: yes" in printed
    assert "torch " + torch.__version__ in printed


@pytest.mark.slow
def test_a_shared_search(tmp_path: Path) -> None:
    """The lists are shared, and the labels stay the same."""
    printed = run("sharing", "--images", "300", "--dim", "24", "--processes", "1", "2")
    assert [(row[0], row[5]) for row in cells(printed)] == [("1", "yes"), ("2", "yes")]
    assert re.search(r"^processor seconds of each: -?\d+\.\d\d / processes \+ -?\d+\.\d\d$", printed, re.MULTILINE)
    draw_people(tmp_path / "features.npy", 300, 24, per_person=30)
    (first, labels), (second, nothing) = in_processes(share, 2, str(tmp_path / "features.npy"), "exact", 1)
    assert first.received == second.received == 150 * 30 * 4 / 2**30
    assert min(first[:3] + second[:3]) > 0 and max(labels) >= 9 and nothing is None


@pytest.mark.slow
def test_scaling_measures_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "scaling"
    options = ["--dim", "24", "--exact-limit", "700", "--output", str(folder)]
    first = cells(run("scaling", "--images", "700", "--neighbors", "exact", *options))
    assert [row[:2] for row in first] == [["700", "exact"]]
    assert float(first[0][11]) > 0.5 and first[0][12] == ""

    # Again, with more rows, in this process: the existing row is kept, and the new ones are added.
    arguments = ["scaling", "--images", "900", "700", "--neighbors", "cells", "exact", *options, "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    benchmark.main()
    second = cells(capsys.readouterr().out)
    assert second[0] == first[0]
    assert [row[:2] for row in second] == [["700", "exact"], ["700", "cells"], ["900", "cells"]]
    assert float(second[1][12]) > 0.5 and second[2][12] == ""
    assert len((folder / "rows.jsonl").read_text().splitlines()) == 3
    assert sorted(path.name for path in folder.iterdir()) == [
        "exact-700x24.npy",
        "rows.jsonl",
        "scaling_memory.png",
        "scaling_seconds.png",
    ]
    assert Image.open(folder / "scaling_seconds.png").size == (960, 540)


@pytest.mark.slow
def test_input_beside_the_network(datasets_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTREID_DATASETS", str(datasets_root))
    changes = [str(part) for item in SMALL.items() for part in item]
    sizes = ["--images", "54", "--steps", "2", "--workers", "1", "--repeats", "2"]
    config = str(ROOT / "configs" / "ice_market.yml")
    printed = run("input", "--config-file", config, *sizes, *changes, "DATASETS.NAMES", "('SyntheticPeople',)")
    rows = {row[0]: [float(cell) for cell in row[1:]] for row in cells(printed)}
    assert list(rows)[:7] == [
        "decode",
        "resize",
        "decode and resize into batches",
        "batches from the cache",
        "augmentation of batches",
        "fast-reid's transforms",
        "collation of single images",
    ]
    assert [name for name in rows if name.startswith("training loader")] == [
        f"training loader, cache {cache}, {workers} workers" for workers in (0, 1) for cache in ("none", "ram")
    ]
    assert list(rows)[-6:] == [
        "network, training step",
        "network, features",
        *(f"{work}, cache {cache}, 1 workers" for work in ("features", "evaluation") for cache in ("none", "ram")),
    ]
    for rate, slowest, fastest in rows.values():
        assert 0 < slowest <= rate <= fastest
    sentence = r"loader brings [0-9.]+ times .* extraction takes [0-9.]+ times the network.*, evaluation [0-9.]+ times"
    assert len(re.findall(sentence, printed)) == 2


@pytest.mark.parametrize(("key", "sizes"), [("SIZE_TRAIN", [64, 64]), ("SIZE_TEST", [256, 64])])
def test_input_extracts_from_crops_of_the_given_size(key: str, sizes: list[int]) -> None:
    opts = [f"INPUT.{key}", "[64, 32]"]
    cfg = benchmark_input.build_config(Namespace(config_file="configs/ice_market.yml", device="cpu", opts=opts))
    assert [cfg.INPUT.SIZE_TRAIN[0], cfg.INPUT.SIZE_TEST[0]] == sizes


@pytest.mark.parametrize("amp", [False, True])
def test_input_takes_the_precision_of_the_config(amp: bool) -> None:
    cpu = torch.device("cpu")
    with benchmark_input.precision(small_config(**{"SOLVER.AMP.ENABLED": amp}), cpu):
        lower = torch.ones(4, 4) @ torch.ones(4, 4)
    assert lower.dtype == (amp and mixed_precision(cpu) or torch.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scaling", "--images", "1000", "3"], "--images must be at least 30"),
        (["recluster", "--repeats", "0"], "--repeats must be at least 1"),
        (["scaling", "--neighbors", "fast"], "invalid choice: 'fast'"),
    ],
)
def test_bad_input(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert message in capsys.readouterr().err


def test_people_are_drawn_as_asked(tmp_path: Path) -> None:
    """Also across the blocks in which they are drawn: unit rows, nearer to their own person than to others."""
    identities = draw_people(tmp_path / "people.npy", 20_000, 16, per_person=30, strays=0.1)
    features = np.load(tmp_path / "people.npy")
    assert features.shape == (20_000, 16) and features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    sizes = np.bincount(identities)
    assert (sizes == 1).sum() == 2000 and (sizes[sizes > 1] == 30).all()
    assert (np.diff(identities) != 0).mean() > 0.9, "people are shuffled"
    for block in (slice(0, 16384), slice(16384, None)):
        rows, who = features[block][:1500], identities[block][:1500]
        similarity, same = rows @ rows.T, who[:, None] == who
        np.fill_diagonal(same, False)
        assert similarity[same].mean() > similarity[~same].mean() + 0.2
    again = draw_people(tmp_path / "again.npy", 20_000, 16, per_person=30, strays=0.1)
    np.testing.assert_array_equal(again, identities)
    np.testing.assert_array_equal(np.load(tmp_path / "again.npy"), features)


def allocate(features: torch.Tensor, clock: Clock, device: str) -> tuple[int, int]:
    """Fills 200 MiB for the whole set and nothing for the few rows of the warm-up; returns its process and threads."""
    with clock.stage("fill"):
        torch.ones(200 if len(features) > 1000 else 0, 2**18)
    return os.getpid(), torch.get_num_threads()


def fail(features: torch.Tensor, clock: Clock, device: str) -> None:
    raise ValueError(f"{len(features)} images")


def die(features: torch.Tensor, clock: Clock, device: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_sees_the_memory_of_its_own_process(tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", np.zeros((2000, 8), np.float32))
    with Worker(allocate, tmp_path / "features.npy", threads=2, device="cpu") as worker:
        runs = [worker.run(), worker.run()]
        with pytest.raises(ValueError, match="2000 images"):
            worker.run(fail)
        with pytest.raises(ChildProcessError, match="the process was killed"):
            worker.run(die)
    assert runs[0].result == runs[1].result == (runs[0].result[0], 2)
    assert runs[0].result[0] != os.getpid()
    for measurement in runs:
        assert list(measurement.seconds) == ["total", "fill"]
        assert 0 < measurement.seconds["fill"] <= measurement.total
        assert 195 < measurement.beside < 240
        assert measurement.beside < measurement.peak and measurement.gpu_peak == 0


def test_the_table_holds_medians_and_ratios() -> None:
    def measured(total: float, gpu_peak: float = 0) -> Measurement:
        return Measurement(None, {"total": total, "half": total / 2}, 900, 300, gpu_peak)

    ours, theirs = [measured(4), measured(1), measured(2)], [measured(4), measured(5), measured(40)]
    assert cells(table({"ours": ours, "theirs": theirs}, baseline="theirs"))[:2] == [
        ["ours", "2.000", "1.000", "4.000", "0.40", "300"],
        ["- half", "1.000", "0.500", "2.000", "0.20", ""],
    ]
    assert cells(table({"ours": [measured(2, gpu_peak=70)]}, baseline="ours"))[0][-1] == "70"
