"""An installed wheel works in any folder: the command, the configs and their weights."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fastreid_ice.commands.__main__ import COMMANDS
from support import ROOT, SMALL

SOURCES = ("fastreid_ice", "configs", "setup.py", "pyproject.toml", "README.md")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network, from a copy, since building leaves files in the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in (*SOURCES, "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / "tree")
    pip("wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", folder, folder / "tree")
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site-packages")
    pip("install", "--no-deps", "--no-index", "--target", folder, wheel)
    return folder


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def run(installed: Path, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """The command as installed, run in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", **environment}
    command = [installed / "bin" / "fastreid-ice", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_holds_what_is_needed(wheel: Path) -> None:
    tree = wheel.parent / "tree"
    files = {path for path in tree.joinpath("fastreid_ice").rglob("*") if path.is_file()}
    expected = {str(path.relative_to(tree)) for path in files}
    expected |= {f"fastreid_ice/configs/{path.name}" for path in (tree / "configs").iterdir()}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected
    assert {"fastreid_ice/reporting/templates/report.html", "fastreid_ice/configs/source_osnet_x0_25.pth"} <= held


def test_the_list_of_commands_needs_no_torch(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    search = os.pathsep.join([str(tmp_path), str(installed)])
    listed = run(installed, tmp_path, "--help", PYTHONPATH=search)
    assert listed.returncode == 0, listed.stderr
    assert re.findall(r"^    (\w+)", listed.stdout, re.MULTILINE) == list(COMMANDS)
    assert run(installed, tmp_path, PYTHONPATH=search).stdout == listed.stdout
    unknown = run(installed, tmp_path, "trian", PYTHONPATH=search)
    assert unknown.returncode == 2
    assert "invalid choice: 'trian'" in unknown.stderr and "recluster" in unknown.stderr


HELP = """
import sys
from contextlib import redirect_stdout
from fastreid_ice.commands.__main__ import main
for command in sys.argv[1:]:
    with open(f"{command}.txt", "w") as file, redirect_stdout(file):
        try:
            main([command, "--help"])
        except SystemExit as end:
            assert end.code == 0
"""


@pytest.mark.slow
def test_every_command_has_its_help(installed: Path, tmp_path: Path) -> None:
    """One by the installed script, and all in one process, since each process takes seconds to import torch."""
    commands = [name for name in COMMANDS if name != "bench"]
    done = run(installed, tmp_path, "export", "--help")
    assert done.returncode == 0 and not done.stderr
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    subprocess.run([sys.executable, "-c", HELP, *commands], cwd=tmp_path, env=environment, check=True)
    helps = {command: (tmp_path / f"{command}.txt").read_text() for command in commands}
    assert helps["export"] == done.stdout
    for command, text in helps.items():
        assert text.startswith(f"usage: fastreid-ice {command} ")
        assert f"fastreid-ice {command} " in text.partition("\n")[2], "an example to copy"


def test_benchmarks_need_a_checkout(installed: Path, tmp_path: Path) -> None:
    refused = run(installed, tmp_path, "bench", "recluster")
    assert refused.returncode == 1 and refused.stdout == ""
    assert refused.stderr.startswith("error: bench needs a checkout") and refused.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_config_that_was_installed_trains_in_any_folder(installed: Path, datasets_root: Path, tmp_path: Path) -> None:
    """With its base files and its weights."""
    kept = ("MODEL.DEVICE", "INPUT.", "DATASETS.", "DATALOADER.", "SOLVER.")
    small = [str(part) for key, value in SMALL.items() if key.startswith(kept) for part in (key, value)]
    options = [*small, "SOLVER.MAX_EPOCH", "1", "CLUSTER.NAME", "GroundTruth", "TEST.EVAL_PERIOD", "0"]
    environment = {"FASTREID_DATASETS": str(datasets_root)}
    train = ["train", "--config-file", "configs/ice_demo.yml"]
    done = run(installed, tmp_path, *train, *options, "OUTPUT_DIR", "run", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "model_final.pth").is_file() and (tmp_path / "run" / "report.html").is_file()
    weights = installed / "fastreid_ice" / "configs" / "source_osnet_x0_25.pth"
    assert f"WEIGHTS: {weights}" in (tmp_path / "run" / "config.yaml").read_text()
