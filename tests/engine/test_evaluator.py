"""BlockedReidEvaluator against fast-reid's own evaluator, on the same predictions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.evaluation import ReidEvaluator

from fastreid_ice import InputError
from fastreid_ice.core import camera_reranked_blocks, rank_metrics, standardize_by_camera
from fastreid_ice.core.retrieval import rank_blocks
from fastreid_ice.engine import BlockedReidEvaluator, UnsupervisedTrainer, check_config
from support import small_config

NUM_QUERY = 300  # more than one block

SETTINGS = {
    "cosine": {},
    "euclidean": {"TEST__METRIC": "euclidean"},
    "AQE": {"TEST__AQE__ENABLED": True},
    "AQE, twice": {"TEST__AQE__ENABLED": True, "TEST__AQE__QE_TIME": 2, "TEST__AQE__QE_K": 9, "TEST__AQE__ALPHA": 1.0},
    "ROC": {"TEST__ROC__ENABLED": True},
    "RERANK": {"TEST__RERANK__ENABLED": True},
    "RERANK, euclidean": {"TEST__RERANK__ENABLED": True, "TEST__METRIC": "euclidean"},
    "RERANK, no expansion": {"TEST__RERANK__ENABLED": True, "TEST__RERANK__K2": 1, "TEST__RERANK__LAMBDA": 0.01},
    "all": {
        "TEST__AQE__ENABLED": True,
        "TEST__ROC__ENABLED": True,
        "TEST__RERANK__ENABLED": True,
        "TEST__RERANK__K1": 15,
        "TEST__RERANK__LAMBDA": 0.7,
    },
}


def fed(kind: type[ReidEvaluator], cfg: CfgNode) -> ReidEvaluator:
    """An evaluator that has processed 800 images of 40 persons in batches; features have any length."""
    evaluator = kind(cfg, NUM_QUERY)
    generator = torch.Generator().manual_seed(0)
    people = torch.randint(0, 40, (800,), generator=generator)
    cameras = torch.randint(0, 4, (800,), generator=generator)
    features = torch.randn(40, 24, generator=generator)[people] + torch.randn(800, 24, generator=generator)
    features *= 0.05 + 0.05 * torch.rand(800, 1, generator=generator)
    for rows in torch.arange(800).split(128):
        evaluator.process({"targets": people[rows], "camids": cameras[rows]}, features[rows])
    return evaluator


@pytest.mark.parametrize("name", list(SETTINGS))
def test_the_figures_are_those_of_fastreid(name: str) -> None:
    cfg = small_config(**SETTINGS[name])
    expected = fed(ReidEvaluator, cfg).evaluate()
    found = fed(BlockedReidEvaluator, cfg).evaluate()
    assert list(found) == list(expected)
    assert 10 < expected["mAP"] < 95 and expected["mINP"] < expected["mAP"]
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-4), key
    if name == "RERANK":
        assert found["mAP"] > fed(BlockedReidEvaluator, small_config()).evaluate()["mAP"] + 1


def test_features_standardised_within_cameras() -> None:
    """Equals the ranking of features that were standardised before, query and gallery together."""
    cfg = small_config(TEST__CAMERA_NORM=True)
    evaluator = fed(BlockedReidEvaluator, cfg)
    found = evaluator.evaluate()
    features, people, cameras = (
        torch.cat([batch[name] for batch in evaluator._predictions]) for name in ("feats", "pids", "camids")
    )
    rows = standardize_by_camera(F.normalize(features), cameras)
    halves = [part for column in (rows, people, cameras) for part in (column[:NUM_QUERY], column[NUM_QUERY:])]
    assert found["mAP"] == pytest.approx(100 * rank_metrics(*halves).average_precision.mean())
    assert found["mAP"] != fed(BlockedReidEvaluator, small_config()).evaluate()["mAP"]
    cfg.TEST.METRIC = "euclidean"
    with pytest.raises(InputError, match="TEST.CAMERA_NORM needs TEST.METRIC cosine, not euclidean"):
        check_config(cfg)


def test_camera_aware_reranking() -> None:
    """Equals that of core on all predictions at once; with its own neighbourhood sizes."""
    cfg = small_config(
        TEST__RERANK__ENABLED=True, TEST__RERANK__DISTANCE="ca_jaccard", TEST__RERANK__CA_JACCARD__K1_INTER=9
    )
    evaluator = fed(BlockedReidEvaluator, cfg)
    found = evaluator.evaluate()
    features, people, cameras = (
        torch.cat([batch[name] for batch in evaluator._predictions]) for name in ("feats", "pids", "camids")
    )
    halves = [part for column in (features, cameras, people) for part in (column[:NUM_QUERY], column[NUM_QUERY:])]
    blocks = camera_reranked_blocks(*halves[:4], k1_inter=9)
    ranked = rank_blocks(blocks, *halves[4:], *halves[2:4])
    assert found["mAP"] == pytest.approx(100 * ranked.average_precision.mean())
    plain = fed(BlockedReidEvaluator, small_config(TEST__RERANK__ENABLED=True)).evaluate()
    assert found["mAP"] != plain["mAP"]
    cfg.TEST.METRIC = "euclidean"
    with pytest.raises(InputError, match="TEST.RERANK.DISTANCE ca_jaccard needs TEST.METRIC cosine, not euclidean"):
        check_config(cfg)
    cfg = small_config(
        TEST__RERANK__ENABLED=True, TEST__RERANK__DISTANCE="ca_jaccard", TEST__RERANK__CA_JACCARD__K1_INTER=801
    )
    with pytest.raises(InputError, match="TEST.RERANK, with K1_INTRA 5, K1_INTER 801, .*a test set of 800 images: "):
        fed(BlockedReidEvaluator, cfg).evaluate()


def test_neighbors_that_are_not_there() -> None:
    cfg = small_config(TEST__RERANK__ENABLED=True, TEST__RERANK__K1=801)
    with pytest.raises(InputError, match="TEST.RERANK, with K1 801, K2 6 and a test set of 800 images: k must lie in"):
        fed(BlockedReidEvaluator, cfg).evaluate()
    cfg = small_config(TEST__AQE__ENABLED=True, TEST__AQE__QE_K=801)
    with pytest.raises(InputError, match="TEST.AQE, with QE_K 801 and a test set of 800 images: k must lie in"):
        fed(BlockedReidEvaluator, cfg).evaluate()


def test_the_trainer_uses_it(cfg: CfgNode) -> None:
    _, evaluator = UnsupervisedTrainer.build_evaluator(cfg, "SyntheticPeople")
    assert type(evaluator) is BlockedReidEvaluator
