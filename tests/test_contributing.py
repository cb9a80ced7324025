"""The method that CONTRIBUTING.md adds in one file and one config trains as printed there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT, SMALL


@pytest.mark.slow
def test_the_method_of_contributing_trains(datasets_root: Path, tmp_path: Path) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for language, file in (("python", "margin.py"), ("yaml", "margin.yml")):
        (block,) = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
        assert f"`{file}`" in text
        (tmp_path / file).write_text(block)

    (tmp_path / "elsewhere").mkdir()
    options = [*(part for item in SMALL.items() for part in item), "CLUSTER.NUM_CLUSTERS", 6, "OUTPUT_DIR", "run"]
    command = ["tools/train_net.py", "--config-file", tmp_path / "margin.yml", "--num-gpus", 2, "MODEL.WEIGHTS", ""]
    done = subprocess.run(
        [sys.executable, *map(str, [ROOT / command[0], *command[1:], *options])],
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "FASTREID_DATASETS": str(datasets_root), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "elsewhere" / "run" / "metrics.json").read_text().splitlines()
    logged = {name: value for line in lines for name, value in json.loads(line).items()}
    losses = {name for name in logged if name.startswith("loss_")}
    assert losses == {"loss_margin", "loss_hard_instance"} and logged["loss_margin"] > 0
    assert logged["cluster/number"] == 6
