"""Time to accuracy: the arithmetic on records of runs, and the input that the command refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.time_to_accuracy import course_table, reached, read_course, target_table
from fastreid_ice import InputError
from processes import run_command

# 100 s of training and, where there is an mAP, 10 s of evaluation in each epoch; half of it on the processor.
RECORD = {
    "name": "ours",
    "epochs": [
        {"start/mAP": 30.0, "seconds/start": 10, "seconds/epoch": 110},
        {"mAP": 40.0, "seconds/evaluation": 10, "seconds/epoch": 110},
        {"mAP": 50.0, "seconds/evaluation": 10, "seconds/epoch": 110},
    ],
}
for epoch in RECORD["epochs"]:
    epoch |= {f"processor_{name}": value / 2 for name, value in epoch.items() if name.startswith("seconds/")}
SLOW = {"epochs": [epoch | {"seconds/epoch": 410, "processor_seconds/epoch": 205} for epoch in RECORD["epochs"]]}


def test_evaluations_are_counted_apart() -> None:
    course = read_course(RECORD, "record")
    assert [point.mAP for point in course] == [30, 40, 50]
    assert [point.training["seconds"] for point in course] == [0, 200, 300]
    assert [point.total["seconds"] for point in course] == [10, 220, 330]
    assert [point.training["processor_seconds"] for point in course] == [0, 100, 150]
    without = read_course({"epochs": [{"mAP": 1.0, **RECORD["epochs"][1]}]}, "record")
    assert [point.training["seconds"] for point in without] == [100]


@pytest.mark.parametrize(("target", "seconds"), [(20, 0), (40, 200), (45, 250), (51, None)])
def test_a_target_between_two_evaluations(target: float, seconds: float | None) -> None:
    assert reached(read_course(RECORD, "record"), target, "seconds") == seconds


def test_tables() -> None:
    courses = {"slow": [read_course(SLOW, "slow")], "ours": 2 * [read_course(RECORD, "ours")]}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in target_table(courses, 45).splitlines()]
    assert rows[0][0] == "until 45.0 mAP"
    assert rows[2:] == [["slow", "1000", "1.00", "500", "1.00"], ["ours", "250", "0.25", "125", "0.25"]]
    assert target_table(courses, 60).count("not reached") == 8
    assert [line.split("|")[1].strip() for line in course_table(courses).splitlines()[2:]] == 3 * ["slow"] + 3 * [
        "ours"
    ]


def test_a_record_without_times_is_named(tmp_path: Path) -> None:
    old, weights = tmp_path / "old.json", tmp_path / "weights.pth"
    old.write_text(json.dumps({"epochs": [{"mAP": 40.0}]}))
    weights.touch()
    with pytest.raises(InputError, match="old.json has no seconds/epoch of every epoch"):
        read_course(json.loads(old.read_text()), str(old))
    done = run_command("bench", "time-to-accuracy", "--weights", weights, "--beside", old, "--methods", "ice")
    assert done.returncode == 1 and f"error: {old} has no seconds/epoch of every epoch" in done.stderr
