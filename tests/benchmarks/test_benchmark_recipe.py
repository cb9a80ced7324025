"""The benchmark of a recipe: its arithmetic, and the command on sizes too small for meaningful times."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.modeling import build_model

from benchmarks import __main__ as benchmark
from benchmarks.recipe import PROFILED_STEPS, Part, Stage, evaluations, profile, settle_statistics, table
from fastreid_ice.data import build_test_loader
from support import ROOT, SMALL, small_config


@pytest.fixture
def own_logging() -> Iterator[None]:
    """Restores fast-reid's loggers."""
    loggers = [logging.getLogger(name) for name in ("fastreid", "fastreid.engine.defaults")]
    before = [(logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers


def cells(text: str) -> list[list[str]]:
    """The rows of the tables in a text, without the first header."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return rows[2:]


def test_the_table_adds_up_what_a_recipe_does() -> None:
    """By hand: 40 epochs of 9 s to recluster and 400 steps of 0.1 s, and 8 evaluations of 15 s."""
    first = Stage(
        40,
        400,
        [
            Part("recluster", 9.0, 40),
            Part("features", 6.0, 40, detail=True),
            Part("train, 20 steps", 2.0, 40 * 400 / 20),
            Part("evaluate", 15.0, 8),
        ],
    )
    assert first.whole == 360 + 1600 + 120
    second = Stage(10, 52, [Part("train, 1 steps", 2.0, 520)])
    assert cells(table([first, second])) == [
        ["stage 1: 40 epochs of 400 steps", "", "52.000", "34.67", "66.7%"],
        ["recluster", "9.000", "9.000", "6.00", "11.5%"],
        ["- features", "6.000", "6.000", "4.00", "7.7%"],
        ["train, 20 steps", "2.000", "40.000", "26.67", "51.3%"],
        ["evaluate", "15.000", "3.000", "2.00", "3.8%"],
        ["stage 2: 10 epochs of 52 steps", "", "104.000", "17.33", "33.3%"],
        ["train, 1 steps", "2.000", "104.000", "17.33", "33.3%"],
    ]
    assert cells(table([second]))[0] == ["10 epochs of 52 steps", "", "104.000", "17.33", "100.0%"]


@pytest.mark.parametrize(
    ("epochs", "period", "start", "expected"),
    [(40, 5, True, 9), (40, 5, False, 8), (7, 5, True, 3), (4, 5, True, 2), (12, 0, True, 2), (12, -1, True, 0)],
)
def test_evaluations_of_a_stage(epochs: int, period: int, start: bool, expected: int) -> None:
    changes = {"SOLVER.MAX_EPOCH": epochs, "TEST.EVAL_PERIOD": period, "TEST.BEFORE_TRAINING": start}
    assert evaluations(small_config(**changes)) == expected
    assert evaluations(small_config(**changes, DATASETS__TESTS=())) == 0


def test_the_profile_names_what_costs_most() -> None:
    matrix = torch.rand(400, 400)

    def steps() -> None:
        for _ in range(PROFILED_STEPS):
            with torch.profiler.record_function("a range of ours"):
                for _ in range(5):
                    matrix @ matrix
                matrix + 1

    rows = cells(profile(steps, "cpu"))
    assert rows[0][0] == "aten::mm"
    assert len(rows) == 4 and rows[3][0] == "a range of ours"
    for _, _, share in rows:
        assert 0 <= float(share.rstrip("%")) <= 100
    assert float(rows[3][1]) > float(rows[0][1]) > float(rows[1][1])


@pytest.mark.parametrize("bn_splits", [1, 4])
@pytest.mark.parametrize("encoder", ["online", "momentum"])
def test_settled_statistics_tell_images_apart(cfg: CfgNode, encoder: str, bn_splits: int) -> None:
    """Of 27 images, which do not split into four equal parts."""
    torch.manual_seed(0)
    cfg.MODEL.BN_SPLITS = bn_splits
    model = build_model(cfg)
    images = build_test_loader(cfg, "SyntheticPeople")[0].dataset[torch.arange(27)]["images"]

    def similarity() -> float:
        model.eval()
        with torch.no_grad():
            features = F.normalize(model.encode(images, encoder))
        return (features @ features.T).mean().item()

    assert similarity() > 0.9
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    settings = [norm.extra_repr() for norm in norms]
    model.train()
    settle_statistics(model, images)
    assert all(module.training for module in model.modules())
    assert similarity() < 0.3
    assert settings == [norm.extra_repr() for norm in norms], "momentum and parts are unchanged"


@pytest.mark.usefixtures("own_logging")
def test_a_recipe_of_two_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a drawn set in Market-1501's proportions, and again on the existing pictures."""
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    keys = ["INPUT.SIZE_TRAIN", "INPUT.SIZE_TEST", "CLUSTER.K1", "SOLVER.IMS_PER_BATCH"]
    changes = [text for key in keys for text in (key, str(SMALL[key]))]
    options = ["--config", str(ROOT / "configs" / "dcmip_demo.yml"), "--images", "60", "--steps", "2", "--threads", "1"]
    monkeypatch.setattr(
        sys, "argv", ["benchmark.py", "recipe", "--synthetic", *options, *changes, "DATALOADER.CACHE", "ram"]
    )
    benchmark.main()
    (folder,) = (tmp_path / "synthetic-people").iterdir()
    sizes = {part.name: len(list(part.glob("*.jpg"))) for part in folder.iterdir()}
    assert sizes == {"bounding_box_train": 60, "query": 16, "bounding_box_test": 74}

    printed = capsys.readouterr().out
    rows = cells(printed)
    parts = ["recluster", "- features", "- neighbors", "- jaccard", "- dbscan"]
    parts += ["first 2 steps, beyond the others", "train, 2 steps", "evaluate"]
    expected = [[f"stage {number}: 6 epochs of 30 steps", "fill the cache", *parts] for number in (1, 2)]
    assert [row[0] for row in rows] == sum(expected, [])
    for name, seconds, epoch, minutes, _ in rows:
        assert float(epoch) * 6 / 60 == pytest.approx(float(minutes), abs=0.02)
        times = {"train, 2 steps": 6 * 30 / 2, "evaluate": 7 * 12936 / 60, "recluster": 6 * 12936 / 60}.get(name)
        if times:
            assert float(seconds) * times / 60 == pytest.approx(float(minutes), abs=0.01 + 0.0006 * times / 60)
    whole = float(re.search(r"the whole recipe: ([0-9.]+) minutes", printed)[1])
    assert whole == pytest.approx(sum(float(row[3]) for row in rows if row[0].startswith("stage")), abs=0.06)
    assert "extrapolated from 60 to 12936 training crops in proportion" in printed


@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "300"], "--images is the number of crops to draw: it needs --synthetic"),
        (["--synthetic", "--images", "3"], "--images must be at least 30"),
        (["--synthetic", "--steps", "0"], "--steps must be at least 1"),
        (["SOLVER.EPOCHS", "3"], "SOLVER.EPOCHS"),
        (["--config-file", str(ROOT / "configs" / "source_synthetic.yml")], "must be MomentumReID"),
    ],
)
def test_bad_input(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "recipe", *arguments])
    with pytest.raises(SystemExit) as ended:
        benchmark.main()
    assert message in f"{ended.value}{capsys.readouterr().err}"
