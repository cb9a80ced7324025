"""The log of a run, as users read it."""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path

import pytest
from fastreid.config import CfgNode

from fastreid_ice.commands.train import main
from fastreid_ice.data import build_training_set
from processes import Process, run_command
from support import ROOT, SMALL, train


def test_epochs_count_from_1_as_in_the_table(cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> None:
    cfg.DATASETS.TESTS = ()
    logging.getLogger("fastreid").addHandler(caplog.handler)  # it does not propagate
    try:
        train(cfg)
        cfg.SOLVER.MAX_EPOCH = 3
        train(cfg, resume=True)
    finally:
        logging.getLogger("fastreid").removeHandler(caplog.handler)
    found = {
        pattern: list(dict.fromkeys(re.findall(pattern, caplog.text)))
        for pattern in (r"Starting training from epoch (\d+)", r"Epoch (\d+): \d+ clusters", r"epoch/iter: (\d+)/")
    }
    assert list(found.values()) == [["1", "3"], ["1", "2", "3"], ["1", "2", "3"]]


def train_in_turn(folders: list[Path], options: list[str]) -> None:
    for folder in folders:
        main(["--config-file", str(ROOT / "configs" / "ice_market.yml"), *options, "OUTPUT_DIR", str(folder)])


@pytest.mark.slow
def test_runs_in_one_process_have_their_own(datasets_root: Path, tmp_path: Path) -> None:
    settings = SMALL | {"SOLVER.MAX_EPOCH": 1, "DATASETS.TESTS": "()"}
    options = [str(part) for item in settings.items() for part in item]
    folders = [tmp_path / name for name in ("first", "second", "first")]
    runs = Process(train_in_turn, folders, options, environment={"FASTREID_DATASETS": str(datasets_root)})
    printed, errors = runs.communicate()
    assert runs.returncode == 0, errors
    starts = "Starting training from epoch 1"
    assert [(folder / "log.txt").read_text().count(starts) for folder in folders[:2]] == [2, 1]
    assert printed.count(starts) == 3


@pytest.mark.slow
def test_names_of_any_bytes_and_the_seed_that_is_set(datasets_root: Path, cfg: CfgNode, tmp_path: Path) -> None:
    folder = tmp_path / "crops"
    folder.mkdir()
    for number, path in enumerate(build_training_set(cfg).paths):
        shutil.copy(path, os.fsencode(folder) + b"/caf\xe9 %02d.jpg" % number)
    (folder / "broken.jpg").touch()
    options = SMALL | {"DATASETS.ROOT": folder, "OUTPUT_DIR": tmp_path / "run", "SOLVER.MAX_EPOCH": 1}
    options |= {"DATALOADER.UNREADABLE": "skip", "DATASETS.NAMES": "('UnlabeledFolder',)", "DATASETS.TESTS": "()"}
    settings = [part for item in options.items() for part in item]
    done = run_command("train", "--config-file", ROOT / "configs" / "ice_folder.yml", *settings)
    assert done.returncode == 0, done.stderr
    assert "Logging error" not in done.stderr and "Traceback" not in done.stderr
    log = Path(tmp_path, "run", "log.txt").read_text()
    for text in (done.stdout, log):
        assert r"caf\udce9 00.jpg" in text, "the names are there, in a form that any terminal can show"
        assert "generated random seed" not in text
