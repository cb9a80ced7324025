"""The benchmark of evaluation as a user runs it, on a size too small for meaningful times."""

from __future__ import annotations

import sys

import pytest

from benchmarks import __main__ as benchmark
from benchmarks.evaluate import table
from benchmarks.measuring import Measurement
from processes import run_command


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--rerank"]], ids=["ranking", "re-ranking"])
def test_evaluate_beside_fastreid(options: list[str]) -> None:
    sizes = ["--queries", 60, "--gallery", 240, "--dim", 16, "--repeats", 1, "--threads", 1]
    done = run_command("bench", "evaluate", *sizes, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("|")][2:]
    assert rows[:2] == ["ours", "fast-reid, Python"]
    assert "metrics equal to those of fast-reid, Python: yes" in done.stdout


@pytest.mark.slow
def test_the_camera_aware_distance_is_measured_alone() -> None:
    sizes = ["--queries", 60, "--gallery", 240, "--dim", 16, "--repeats", 1, "--threads", 1]
    done = run_command("bench", "evaluate", *sizes, "--rerank", "ca_jaccard")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("|")][2:] == ["ours"]


@pytest.mark.slow
def test_few_queries_and_a_large_gallery() -> None:
    """Among the thousand rows of the warm-up, hardly any query would have a true match."""
    sizes = ["--queries", 20, "--gallery", 20000, "--dim", 16, "--repeats", 1, "--threads", 1]
    done = run_command("bench", "evaluate", *sizes)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "metrics equal to those of fast-reid, Python: yes" in done.stdout


def test_the_table_holds_medians_and_ratios() -> None:
    def measured(total: float) -> Measurement:
        return Measurement(None, {"total": total, "Jaccard graph": total / 2}, 900, 300, 0)

    runs = {"ours": [measured(4), measured(1), measured(2)], "theirs": [measured(4), measured(5), measured(40)]}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(runs).splitlines()[2:]]
    assert rows == [
        ["ours", "2.000", "1.00", "300", "0"],
        ["- Jaccard graph", "1.000", "1.00", "", ""],
        ["theirs", "5.000", "2.50", "300", "0"],
        ["- Jaccard graph", "2.500", "2.50", "", ""],
    ]


def test_bad_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "evaluate", "--gallery", "99"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "--gallery must be at least 100" in capsys.readouterr().err
