"""The run of all that needs a GPU, with parts that a test can afford; `benchmarks/gpu.sh --tiny` runs them all."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu import PARTS, Part, read_tables, run_part

ARGUMENTS = {"device": "cpu", "threads": 1, "tiny": True}


def test_figures_of_every_part_are_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Part(["benchmarks", "recluster"], [], ["--images", "1"])
    monkeypatch.setattr(gpu, "PARTS", {"broken": broken, "a million images": PARTS["a million images"]})
    output = tmp_path / "gpu.json"
    with pytest.raises(SystemExit, match="^error: not finished: broken$"):
        gpu.run(Namespace(output=output, minutes=5, **ARGUMENTS))
    found = json.loads(output.read_text())["parts"]
    assert found["broken"]["exit"] == 2 and "--images must be at least 30" in found["broken"]["log"][-1]
    [table] = found["a million images"]["tables"]
    assert [row["images"] for row in table] == ["1,000"] and float(table[0]["total s"]) > 0
    assert "16 dimensions" in found["a million images"]["lines"][0]


def test_time_that_runs_out_stops_a_part() -> None:
    start = time.monotonic()
    found = run_part(["http.server", "--bind", "127.0.0.1", "0"], 1.0)
    assert found["exit"] == -9 and time.monotonic() - start < 10
    assert run_part(["this"], 0)["exit"] is None


def test_tables_are_read_by_the_names_of_their_columns() -> None:
    text = "before\n|  | a |\n|:--|--:|\n| x | 1 |\n| y |  |\n\n| b |\n|---|\n| 2 |"
    assert list(read_tables(text)) == [[{"": "x", "a": "1"}, {"": "y", "a": ""}], [{"b": "2"}]]
