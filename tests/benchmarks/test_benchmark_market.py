"""The budget of the Market-1501 table is the same for every method; and the input that its command refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import market
from fastreid_ice.commands.compare import Trial
from fastreid_ice.config import CONFIGS
from processes import run_command


@pytest.mark.parametrize("epochs", [6, 10])
@pytest.mark.parametrize("method", market.METHODS)
def test_every_method_takes_the_same_steps_from_the_same_start(method: str, epochs: int, tmp_path: Path) -> None:
    options = market.as_options(market.BUDGET | market.own_settings(method, epochs))
    config = CONFIGS / f"{market.METHODS[method].config}.yml"
    stages = [stage.cfg for stage in Trial(method, config, 0, tmp_path, options).stages]
    longer = {"baseline": 12936 // 32, "fast": 225}  # epochs that are passes over the images, or of 225 steps
    if method in longer:
        steps, number = stages[0].SOLVER.ITERS_PER_EPOCH, stages[0].SOLVER.MAX_EPOCH
        assert steps == longer[method]
        assert abs(number * steps - 150 * epochs) < steps / 2
    else:
        assert sum(stage.SOLVER.MAX_EPOCH * stage.SOLVER.ITERS_PER_EPOCH for stage in stages) == 150 * epochs
    for stage in stages:
        assert (stage.SOLVER.IMS_PER_BATCH, stage.DATALOADER.NUM_INSTANCE) == (32, 4)
        assert stage.INPUT.SIZE_TRAIN == [256, 128] and stage.MODEL.HEADS.POOL_LAYER == "GlobalAvgPool"
        assert stage.DATASETS.NAMES == stage.DATASETS.TESTS == ("Market1501",)
        assert stage.SOLVER.MAX_EPOCH % stage.TEST.EVAL_PERIOD == 0 or len(stages) > 1


def test_an_odd_number_of_epochs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").touch()
    done = run_command("bench", "market", "--weights", tmp_path / "weights.pth", "--epochs", 5)
    assert done.returncode == 2 and "--epochs must be even" in done.stderr


def test_missing_weights_are_named() -> None:
    done = run_command("bench", "market", "--weights", "nowhere.pth")
    assert done.returncode == 2 and "--weights: no file 'nowhere.pth'" in done.stderr
