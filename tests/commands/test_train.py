"""The command line as a user runs it: its output and exit code, for good and bad input."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from fastreid.config import get_cfg
from fastreid.engine import default_argument_parser

from fastreid_ice import InputError, add_ice_config
from fastreid_ice.commands import train
from fastreid_ice.config import Run
from fastreid_ice.engine import UnsupervisedTrainer, check_config
from processes import run_command
from support import ROOT, SMALL

SMALL_OPTIONS = [str(part) for key, value in SMALL.items() for part in (key, value)]


def command_line(output: Path, flags: list[str], options: list[str]) -> list[str]:
    config = ["--config-file", str(ROOT / "configs" / "ice_market.yml")]
    return [*config, *flags, *SMALL_OPTIONS, "OUTPUT_DIR", str(output), *options]


def run(
    datasets_root: Path, output: Path, *, flags: list[str] | None = None, options: list[str] | None = None
) -> subprocess.CompletedProcess:
    arguments = command_line(output, flags or [], options or [])
    return run_command("train", *arguments, environment={"FASTREID_DATASETS": str(datasets_root)})


@pytest.mark.slow
def test_train_resume_and_evaluate(datasets_root: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    done = run(datasets_root, output, options=["SOLVER.MAX_EPOCH", "1"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Extracting momentum features: 1 done" in (output / "log.txt").read_text()
    resumed = run(datasets_root, output, flags=["--resume"])
    assert resumed.returncode == 0 and "Starting training from epoch 2" in resumed.stdout
    table = resumed.stdout[resumed.stdout.rindex("Epochs:") :].splitlines()
    assert [row.split()[0] for row in table[3:6]] == ["start", "1", "2"]
    weights = ["MODEL.WEIGHTS", str(output / "model_final.pth")]
    evaluated = run(datasets_root, output, flags=["--eval-only"], options=weights)
    assert evaluated.returncode == 0
    row = next(line for line in evaluated.stdout.splitlines() if line.startswith("| SyntheticPeople, momentum"))
    assert float(row.split("|")[5]) == pytest.approx(float(table[5].split()[-2]), abs=0.06)


BAD = {
    "a loss": (["MODEL.LOSSES.NAME", "('Centre',)"], "MODEL.LOSSES.NAME: 'Centre' is not registered; choose from"),
    "a clusterer": (["CLUSTER.NAME", "OPTICS"], "CLUSTER.NAME: 'OPTICS' is not registered; choose from"),
    "a range": (["CLUSTER.EPS", "1.5"], "CLUSTER.EPS 1.5 must lie between 0 and 1"),
    "a whole number": (["CLUSTER.EPS", "55"], "^CLUSTER.EPS 55.0 must lie between 0 and 1"),
    "a key": (["CLUSTER.EPSILON", "0.5"], "CLUSTER.EPSILON"),
    "a type": (["CLUSTER.K1", "many"], "CLUSTER.K1"),
    "a size": (["INPUT.SIZE_TRAIN", "[8.5,4]"], r"^INPUT.SIZE_TRAIN \[8.5, 4\] must be a height and a width"),
    "a text for a size": (["INPUT.SIZE_TEST", "['a',4]"], "^INPUT.SIZE_TEST .* must be a height and a width"),
    "an optimiser": (["SOLVER.OPT", "Adan"], "^SOLVER.OPT 'Adan' must name an optimiser of torch.optim, such as Adam"),
    "a device": (["MODEL.DEVICE", "gpu"], "MODEL.DEVICE 'gpu' is not a device"),
    "weights": (["MODEL.WEIGHTS", "nowhere.pth"], "MODEL.WEIGHTS: no file 'nowhere.pth'"),
    "no checkpoint": (["--resume"], "holds no checkpoint; train without --resume first"),
    "a batch": (
        ["SOLVER.IMS_PER_BATCH", "10"],
        "SOLVER.IMS_PER_BATCH 10 must be a multiple of DATALOADER.NUM_INSTANCE 4",
    ),
    "a dataset": (["DATASETS.NAMES", "('Market',)"], "'Market' is not registered; choose from"),
    "a folder": (["DATASETS.NAMES", "('Market1501',)"], "dataset Market1501: .* is not found .*FASTREID_DATASETS"),
}


@pytest.mark.parametrize("what", list(BAD))
def test_bad_input_is_one_sentence(datasets_root: Path, tmp_path: Path, monkeypatch, what: str) -> None:
    """In this process, up to where training would start: the message names key or file, and nothing is written."""
    arguments, message = BAD[what]
    monkeypatch.setenv("FASTREID_DATASETS", str(datasets_root))
    flags = [argument for argument in arguments if argument.startswith("--")]
    options = [argument for argument in arguments if argument not in flags]
    args = default_argument_parser().parse_args(command_line(tmp_path / "run", flags, options))
    with pytest.raises(InputError, match=message) as error:
        UnsupervisedTrainer(train.setup(args))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "options", "message"),
    [
        ([], ["CLUSTER.EPS", "0.0"], "error: CLUSTER.EPS 0.0 must lie"),
        ([], ["DATASETS.NAMES", "('Market1501',)"], "error: dataset Market1501: "),
        (["--num-gpus", "2"], ["DATASETS.NAMES", "('Market1501',)"], "error: dataset Market1501: "),
        ([], ["MODEL.DEVICE", "cuda"], "error: MODEL.DEVICE is cuda, but torch sees no GPU here; use MODEL.DEVICE cpu"),
    ],
)
def test_bad_input_ends_the_command(
    datasets_root: Path, tmp_path: Path, monkeypatch, flags: list[str], options: list[str], message: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = run(datasets_root, tmp_path / "run", flags=flags, options=options)
    assert done.returncode not in (0, None)
    assert done.stderr.strip().splitlines()[-1].startswith(message), done.stderr
    assert not list(tmp_path.glob("run/*.pth"))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yml")), ids=lambda path: path.stem)
def test_every_config_is_valid(path: Path) -> None:
    cfg = get_cfg()
    add_ice_config(cfg)
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    check_config(cfg)


def test_options_count_in_every_stage(tmp_path: Path) -> None:
    config = ["--config-file", str(ROOT / "configs" / "dcmip_market.yml")]
    options = [*SMALL_OPTIONS, "OUTPUT_DIR", str(tmp_path / "run"), "SOLVER.MAX_EPOCH", "7"]
    cfg = train.setup(default_argument_parser().parse_args([*config, *options]))
    stages = [stage.cfg for stage in Run(cfg).stages]
    assert [stage.SOLVER.MAX_EPOCH for stage in stages] == [7, 7]
    assert [len(stage.MODEL.LOSSES.NAME) for stage in stages] == [1, 2], "other keys are unchanged"
    with pytest.raises(InputError, match="--resume: '.*run/stage1' .* holds no checkpoint"):
        train.setup(default_argument_parser().parse_args([*config, "--resume", *options]))


@pytest.mark.parametrize("none", ["STAGES:", "STAGES: []"])
def test_a_config_takes_the_stages_of_its_base_away(tmp_path: Path, none: str) -> None:
    (tmp_path / "mine.yml").write_text(f"_BASE_: dcmip_market.yml\n{none}\n")
    options = [*SMALL_OPTIONS, "OUTPUT_DIR", str(tmp_path / "run")]
    cfg = train.setup(default_argument_parser().parse_args(["--config-file", str(tmp_path / "mine.yml"), *options]))
    assert [stage.cfg for stage in Run(cfg).stages] == [cfg]
