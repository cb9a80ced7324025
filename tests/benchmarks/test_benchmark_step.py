"""The benchmark of a step: that both schedules compute the same, and what the command prints."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import __main__ as benchmark
from benchmarks.measuring import Clock
from benchmarks.step import PUBLISHED, Ours, Published, config, draw_batch, draw_clusters
from fastreid_ice.compat.training import mixed_precision


def test_the_published_schedule_has_the_losses_of_ours() -> None:
    """In the first step, up to the order of the sums."""
    cfg = config("resnet18", (64, 32), "cpu")
    clusters, batch = draw_clusters(20, 512, "cpu"), draw_batch(12, 64, 32, 20)
    ours, published = Ours(cfg, batch, clusters, amp=False), Published(cfg, batch, clusters)
    ours.step()
    published.step()
    names = ("cluster_proxy", "cross_camera", "hard_instance", "soft_consistency")
    losses = [ours.storage.history(f"loss_{name}").latest() for name in names]
    assert losses == pytest.approx(published.last, rel=1e-3)
    clock = Clock("cpu")
    ours.parts(clock)
    assert list(clock.seconds) == ["losses", "logging", "momentum encoder, memories"]


def test_ours_computes_less() -> None:
    """Counted in place of timed: beside other work, the times of so small a step say little."""
    cfg = config("resnet18", (64, 32), "cpu")
    clusters, batch = draw_clusters(20, 512, "cpu"), draw_batch(12, 64, 32, 20)
    operations, passes = [], []
    for schedule in (Ours(cfg, batch, clusters, amp=False), Published(cfg, batch, clusters)):
        with FlopCounterMode(display=False) as counter:
            schedule.step()
        operations.append(counter.get_total_flops())
        passes.append(schedule.passes)
    # A little less than the passes: images need no gradient, so the backward pass of the first layer is half of one.
    assert operations[0] / operations[1] == pytest.approx(passes[0] / passes[1], rel=0.01)
    assert passes == [6, 7]


def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--network",
        "resnet18",
        "--batch",
        "8",
        "--size",
        "32",
        "32",
        "--clusters",
        "6",
        "--repeats",
        "2",
        "--threads",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "step", *options])
    benchmark.main()
    printed = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    parts = ["- losses", "- logging", "- momentum encoder, memories"]
    ours = ["ours", "ours, bfloat16"] if mixed_precision(torch.device("cpu")) else ["ours"]
    assert [line[0] for line in lines[2:]] == [PUBLISHED, *(row for name in ours for row in (name, *parts))]
    assert lines[2][4] == "1.000"
    for _, seconds, fastest, slowest, _ in lines[2:]:
        assert float(fastest) <= float(seconds) <= float(slowest)
    own = lines[3]
    (ratio,) = re.findall(r"^ours: (\d\.\d+) of the published schedule", printed, re.M)
    assert own[4] == ratio and "of it is neither network nor optimiser" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "4"], "--batch must be at least 8"),
        (["--size", "256", "16"], "--size must be at least 32"),
        (["--network", "resnet5"], "invalid choice: 'resnet5'"),
    ],
)
def test_bad_input(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "step", *arguments])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert message in capsys.readouterr().err
