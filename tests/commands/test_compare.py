"""The comparison as a user runs it: small configs, real runs."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.time_to_accuracy import read_course
from fastreid_ice import InputError
from fastreid_ice.commands import compare
from fastreid_ice.files import owned_folder
from processes import run_command, start_command
from support import ROOT, SMALL

OPTIONS = [str(part) for key, value in SMALL.items() if key != "SOLVER.MAX_EPOCH" for part in (key, value)]
OPTIONS += ["MODEL.WEIGHTS", ""]


@pytest.fixture
def configs(tmp_path: Path) -> list[Path]:
    """One config of one stage, and one of two."""
    small = f"_BASE_: {ROOT / 'configs' / 'ice_agnostic_demo.yml'}\n"
    (tmp_path / "plain.yml").write_text(small + "SOLVER: {MAX_EPOCH: 1}\n")
    stages = "STAGES: [{SOLVER: {MAX_EPOCH: 1}}, {SOLVER: {MAX_EPOCH: 1}, CLUSTER: {NAME: GroundTruth}}]\n"
    (tmp_path / "staged.yml").write_text(small + stages)
    return [tmp_path / "plain.yml", tmp_path / "staged.yml"]


def cells(table: str) -> dict[str, list[str]]:
    return {row.split()[0]: row.split()[1:] for row in table.splitlines()[2:]}


@pytest.mark.slow
def test_a_table_and_a_picture_and_nothing_is_run_twice(
    datasets_root: Path, configs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTREID_DATASETS", str(datasets_root))
    output = tmp_path / "compare"
    files = [argument for path in configs for argument in ("--config-file", str(path))]
    done = run_command("compare", *files, "--seeds", 1, "--output", output, *OPTIONS)
    assert done.returncode == 0, done.stdout + done.stderr
    table = (output / "table.txt").read_text()
    assert done.stdout.endswith(table)
    rows = cells(table)
    assert list(rows) == ["(start)", "plain", "staged"]
    assert [rows[name][0] for name in ("plain", "staged")] == ["1", "1"]
    assert rows["staged"][3:5] == ["1.000", "6"], "the last stage uses true identities"
    assert 0 < float(rows["plain"][1]) <= 100 and 0 < float(rows["(start)"][0]) <= 100
    assert rows["plain"] != rows["staged"]
    records = json.loads((output / "results.json").read_text())
    seconds = [output / name / "seed0" / "seconds.txt" for name in ("plain", "staged")]
    assert [(record["config"], record["seed"], len(record["epochs"])) for record in records] == [
        ("plain.yml", 0, 1),
        ("staged.yml", 0, 2),
    ]
    assert f"{records[0]['epochs'][0]['mAP']:.1f}" == rows["plain"][1]
    course = read_course(records[0], "results.json")
    assert [f"{point.mAP:.1f}" for point in course] == [rows["(start)"][0], rows["plain"][1]]
    assert 0 < course[1].training["processor_seconds"] < course[1].total["processor_seconds"]
    assert course[1].total["seconds"] < float(seconds[0].read_text())
    picture = Image.open(output / "curves.png").convert("RGB")
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= {colour for _, colour in picture.getcolors(2**20)}
    # A second call keeps complete runs; a run that was interrupted continues.
    assert [len(path.read_text().split()) for path in seconds] == [1, 1]
    (output / "staged" / "seed0" / "stage2" / "last_checkpoint").unlink()
    assert compare.compare(compare.by_name(configs), 1, output, OPTIONS)
    assert [len(path.read_text().split()) for path in seconds] == [1, 2]
    repeated = cells((output / "table.txt").read_text())
    assert repeated["plain"] == rows["plain"] and repeated["staged"][:5] == rows["staged"][:5]
    # Other settings in the same folder would mix runs.
    with pytest.raises(InputError, match="plain/seed0 holds a run with another config; choose another --output"):
        compare.compare(compare.by_name(configs), 1, output, [*OPTIONS, "CLUSTER.EPS", "0.5"])


@pytest.mark.slow
def test_a_failed_run_leaves_the_others(
    datasets_root: Path, configs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Missing files are found when a run starts."""
    monkeypatch.setenv("FASTREID_DATASETS", str(datasets_root))
    configs[0].write_text(configs[0].read_text() + "DATASETS: {NAMES: [Market1501]}\n")
    where = OPTIONS.index("DATASETS.NAMES")
    options = OPTIONS[:where] + OPTIONS[where + 2 :]
    assert not compare.compare(compare.by_name(configs), 1, tmp_path / "compare", options)
    assert "plain, seed 0 failed: error: dataset Market1501: " in capsys.readouterr().out
    assert list(cells((tmp_path / "compare" / "table.txt").read_text())) == ["(start)", "staged"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("send", "number", "sentence"),
    [
        (os.killpg, signal.SIGINT, "interrupted; the same command continues\n"),  # Ctrl-C reaches the run as well
        (os.kill, signal.SIGTERM, ""),  # as a batch system sends it, to the command alone
    ],
)
def test_an_interrupt_ends_the_run_too(
    datasets_root: Path,
    configs: list[Path],
    tmp_path: Path,
    send: Callable[[int, int], None],
    number: signal.Signals,
    sentence: str,
) -> None:
    """The same command resumes the run."""
    output = tmp_path / "compare"
    done = start_command(
        *("compare", "--config-file", configs[0], "--output", output, *OPTIONS, "SOLVER.MAX_EPOCH", 500),
        environment={"FASTREID_DATASETS": str(datasets_root)},
    )
    try:
        while not (output / "plain" / "seed0" / "last_checkpoint").is_file() and done.poll() is None:
            time.sleep(0.01)
        send(done.pid, number)
        _, errors = done.communicate(timeout=100)
    finally:
        if done.poll() is None:
            os.killpg(done.pid, signal.SIGKILL)
    assert (done.returncode, errors) == (128 + number, sentence)
    run = compare.Trial("plain", configs[0], 0, output / "plain" / "seed0", [*OPTIONS, "SOLVER.MAX_EPOCH", "500"])
    with owned_folder(str(run.folder)):  # or "another run is writing there"
        pass
    assert not run.complete and len((run.folder / "seconds.txt").read_text().split()) == 1


def test_bad_input_is_told_before_anything_runs(configs: list[Path], tmp_path: Path) -> None:
    configs[1].write_text(configs[1].read_text() + "CLUSTER: {MIN_SAMPLES: 0}\n")
    with pytest.raises(InputError, match="staged, seed 0: STAGES, stage 1: CLUSTER.MIN_SAMPLES 0 must"):
        compare.compare(compare.by_name(configs), 1, tmp_path / "compare", OPTIONS)
    with pytest.raises(InputError, match="two configs have the same file name"):
        compare.by_name([configs[0], configs[0]])
    assert not (tmp_path / "compare").exists()


def test_mean_and_spread() -> None:
    assert compare.mean_and_spread([1.0, 2.0, 3.0], ".1f") == "2.0 ± 1.0"
    assert compare.mean_and_spread([1.0], ".1f") == "1.0"
    assert compare.mean_and_spread([], ".1f") == ""
