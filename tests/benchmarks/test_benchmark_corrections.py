"""What answers are worth: the truth as the person, in order of doubt and in random order."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from fastreid.config import CfgNode

from benchmarks import corrections
from benchmarks.market import as_options
from fastreid_ice.core import label_quality
from fastreid_ice.data import build_training_set, read_corrections
from fastreid_ice.engine import build_own_config
from trained import make_trained


@pytest.mark.slow
def test_doubtful_questions_are_worth_more(tmp_path: Path) -> None:
    """24 drawn people from the start weights of the demo: in order of doubt, fewer answers do."""
    node = {"STRENGTH": "strong", "TRAIN_IDENTITIES": 24, "TEST_IDENTITIES": 1, "IMAGES_PER_CAMERA": 4}
    settings = {f"DATASETS.SYNTHETIC.{key}": value for key, value in node.items()}
    settings |= {"MODEL.DEVICE": "cpu", "DATASETS.ROOT": str(tmp_path)}
    features, known = corrections.first_features(build_own_config("ice_demo.yml", as_options(settings)))
    images = corrections.Images("", features, known.identities, 15, 0.5)
    (_, *doubtful), (_, *drawn), (_, *alone), (_, *joined) = corrections.rows(images, 3)
    assert doubtful[0] == drawn[0] < drawn[1] < doubtful[1] < doubtful[3], (doubtful, drawn)
    assert alone[0] == joined[0] == drawn[0] and alone[1] > joined[1] and alone[2] > joined[2], (alone, joined)
    quality, asked = corrections.answer(images, corrections.graph_of(images), None, 50)
    assert quality == doubtful[:2] and len(asked) == 50
    said = corrections.corrections_from_truth(asked, known.identities)
    labels = corrections.cluster(images, corrections.graph_of(images), said)
    assert label_quality(labels, known.identities).adjusted_rand_index == quality[-1]


def test_answers_become_a_file(cfg: CfgNode, tmp_path: Path) -> None:
    """About the images of a run, as the truth says."""
    training_set = build_training_set(cfg)
    folder = Path(training_set.paths[0]).parent
    run = make_trained(tmp_path / "run", folder, DATASETS__ROOT=cfg.DATASETS.ROOT)
    answers = corrections.ask(run, 50, in_order=False)
    assert answers[:25] == corrections.ask(run, 25, in_order=False)
    corrections.write_answers(tmp_path / "new" / "said.csv", answers[:25])
    said = read_corrections(str(tmp_path / "new" / "said.csv"), training_set.paths)
    truth = training_set.identities.numpy()
    of_group = np.full(said.groups.max() + 1, -1)
    of_group[said.groups] = truth
    assert torch.equal(torch.from_numpy(of_group[said.groups]), training_set.identities), "a group is one person"
    one, other = of_group[said.apart].T
    assert (one != other).all() and len(one) + said.certain.sum() > 5


def test_metrics_of_a_run(tmp_path: Path) -> None:
    lines = ['{"cluster/ari": 0.5, "mAP": 40.0, "Rank-1": 50.0}', '{"cluster/ari": 0.6}', '{"mAP": 45.5, "Rank-1": 51}']
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    assert corrections.outcome(tmp_path) == (0.6, 45.5, 51)


def test_what_is_trained(tmp_path: Path) -> None:
    """The configs are valid, and both have the epochs that were asked for."""
    weights = tmp_path / "osnet.pth"
    weights.touch()
    parser = argparse.ArgumentParser()
    corrections.add_arguments(parser)
    for more, names in ([], ["strong", "mild"]), (["--market", str(weights)], ["market"]):
        arguments = ["--seeds", "0", "--train", "2", "--answers", "50", "100", *more]
        args = parser.parse_args(arguments, argparse.Namespace(device="cpu"))
        corrections.check(args)
        runs = corrections.runs(args)
        assert list(runs) == names
        for config, settings in runs.values():
            cfg = build_own_config(config, as_options(settings))
            assert cfg.SOLVER.MAX_EPOCH == cfg.TEST.EVAL_PERIOD == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--answers", "50", "60"], "--answers must be multiples of 25"),
        (["--market", "osnet.pth"], "--market needs --train"),
        (["--market", "nowhere.pth", "--train", "1"], "--market: no file 'nowhere.pth'"),
    ],
)
def test_bad_input(arguments: list[str], message: str) -> None:
    parser = argparse.ArgumentParser()
    corrections.add_arguments(parser)
    with pytest.raises(argparse.ArgumentError, match=message):
        corrections.check(parser.parse_args(arguments))
