"""What is said about a giant cluster or nearly all noise, and that nothing is said otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastreid_ice.config import Run
from fastreid_ice.reporting import PseudoLabels, describe_doubt, write_report
from support import small_config


def labels_of(*sizes: int, noise: int = 0) -> np.ndarray:
    return np.append(np.repeat(np.arange(len(sizes)), sizes), np.full(noise, -1))


GIANT = labels_of(196, 9, 8, 8, 7, 4, noise=68)
NOISE = labels_of(20, 20, noise=260)


@pytest.mark.parametrize(
    ("labels", "changes", "sentence"),
    [
        (
            GIANT,
            {"CLUSTER__EPS": 0.55, "CLUSTER__K1": 30},
            "One cluster holds 196 of 300 images (65%), the median of the others is 8; probably it mixes several "
            "identities: lower CLUSTER.EPS (0.55) or CLUSTER.K1 (30), or let CLUSTER.AUTO_EPS True choose the radius",
        ),
        (GIANT, {"CLUSTER__AUTO_EPS": True, "CLUSTER__K1": 30}, "lower CLUSTER.K1 (30), or start from better weights"),
        (
            GIANT,
            {"CLUSTER__AUTO_K1": True},
            "lower CLUSTER.EPS (0.6) or CLUSTER.K1 (17, which CLUSTER.AUTO_K1 chose), or",
        ),
        (GIANT, {"CLUSTER__NAME": "HDBSCAN", "CLUSTER__K1": 30}, "lower CLUSTER.K1 (30), or start from better weights"),
        (GIANT, {"CLUSTER__NAME": "KMeans"}, "raise CLUSTER.NUM_CLUSTERS (500)"),
        (GIANT, {"CLUSTER__DISTANCE": "ca_jaccard"}, "or CLUSTER.CA_JACCARD.K1_INTER (20) and K1_INTRA (5), or"),
        (GIANT, {"CLUSTER__NAME": "Mine"}, "change the keys of CLUSTER.NAME Mine"),
        (
            labels_of(160, 20, noise=20),
            {},
            "One cluster holds 160 of 200 images (80%), the median of the others is 20;",
        ),
        (labels_of(250, *[10] * 75), {}, "One cluster holds 250 of 1000 images (25%), the median of the others is 10;"),
        (labels_of(300), {}, "One cluster holds 300 of 300 images (100%), and there is no other; probably"),
        (NOISE, {"CLUSTER__EPS": 0.3, "CLUSTER__K1": 30}, "260 of 300 images (87%) are in no cluster: raise"),
        (NOISE, {"CLUSTER__EPS": 0.3, "CLUSTER__K1": 30}, "CLUSTER.EPS (0.3) or CLUSTER.K1 (30), or let CLUSTER.AUTO_"),
        (NOISE, {"CLUSTER__AUTO_EPS": True}, "raise CLUSTER.K1 (6), or start from better weights (MODEL.WEIGHTS)"),
        (NOISE, {"CLUSTER__NAME": "HDBSCAN"}, "lower CLUSTER.MIN_CLUSTER_SIZE (4), or raise CLUSTER.K1 (6)"),
        (labels_of(noise=300), {}, "300 of 300 images (100%) are in no cluster"),
    ],
)
def test_names_the_key_and_its_value(labels: np.ndarray, changes: dict, sentence: str) -> None:
    found = describe_doubt(labels, small_config(**changes))
    assert sentence in found and "\n" not in found
    assert describe_doubt(labels, small_config(CLUSTER__NAME="GroundTruth")) == ""


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(np.empty(0, np.int64), id="no images"),
        pytest.param(labels_of(60, 2, 2, noise=10), id="few images"),
        pytest.param(labels_of(150, 150), id="two people"),
        pytest.param(labels_of(80, 30, 20, 20, 10, 8), id="one person is seen often"),
        pytest.param(labels_of(*[16] * 40, 60, noise=128), id="the usual outcome"),
        pytest.param(labels_of(*[5] * 20, noise=390), id="much noise"),
    ],
)
def test_no_false_alarm(labels: np.ndarray) -> None:
    assert describe_doubt(labels, small_config()) == ""


def test_the_page_says_it(tmp_path: Path) -> None:
    for labels, said in ((GIANT, True), (labels_of(150, 150), False)):
        cfg = small_config(OUTPUT_DIR=str(tmp_path / str(said)))
        Path(cfg.OUTPUT_DIR).mkdir()
        names = [f"{row}.jpg" for row in range(300)]
        PseudoLabels(names, [""] * 300, labels, np.full(300, 0.1)).write(Path(cfg.OUTPUT_DIR, "labels.csv"))
        page = write_report(Run(cfg)).read_text()
        assert ('<p class="warning" role="note">One cluster holds 196 of 300 images' in page) == said
