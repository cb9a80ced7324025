"""What tracks are worth: the guessed tracks, the table, and that it rises with tracks of drawn people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import tracks
from benchmarks.market import as_options
from fastreid_ice.core import ImageTable
from fastreid_ice.data import build_training_set
from fastreid_ice.engine import build_own_config
from support import small_config
from tiny_market import draw_tiny_market


def test_who_follows_whom_is_that_of_a_loop() -> None:
    random = np.random.default_rng(0)
    keys = torch.from_numpy(random.integers(0, 4, (200, 2)))
    times = torch.from_numpy(random.integers(0, 300, 200)).double()
    found = tracks.following(keys, times, 10)
    expected = torch.full((200,), -1)
    last: dict[tuple[int, int], int] = {}
    for image in np.lexsort((np.arange(200), times)).tolist():
        key = tuple(keys[image].tolist())
        before = last.get(key)
        follows = before is not None and times[image] - times[before] <= 10
        expected[image] = expected[before] if follows else image
        last[key] = image
    pairs = torch.stack((found, expected), 1).unique(dim=0)
    assert len(pairs) == len(found.unique()) == len(expected.unique()) > 100


def test_guessed_tracks_read_frames_and_boxes_only(tmp_path: Path) -> None:
    """16 images in two cameras, frames 0 and 1, box 0: another identity in the names gives the same tracks."""
    cfg = small_config(DATASETS__NAMES=("Market1501",), DATASETS__ROOT=str(draw_tiny_market(tmp_path)))
    images = build_training_set(cfg)
    found = tracks.tracks_by_name(images.paths, images.known)
    renamed = [path.replace("/000", "/999") for path in images.paths]
    assert torch.equal(found, tracks.tracks_by_name(renamed, images.known.without_identities()))
    truth = tracks.tracks_by_truth(images.known)
    assert len(truth.unique()) == 8, "each of 4 persons in each of 2 cameras"
    sentence = tracks.describe(ImageTable(images.cameras, truth, images.known.times, images.identities))
    assert sentence.startswith("8 tracks of several of 16 images, 100.0% of one person; 12 pairs of ")


@pytest.mark.slow
@pytest.mark.parametrize("strength", ["mild", "strong"])
def test_tracks_raise_what_is_right_of_drawn_people(strength: str, tmp_path: Path) -> None:
    """From the start weights of the demo, at every radius; most of it because a track is one person."""
    node = {"STRENGTH": strength, "TRAIN_IDENTITIES": 16, "IMAGES_PER_CAMERA": 8, "FRAMES": 4, "TEST_IDENTITIES": 1}
    settings = {f"DATASETS.SYNTHETIC.{key}": value for key, value in node.items()}
    settings |= {"MODEL.DEVICE": "cpu", "DATASETS.ROOT": str(tmp_path)}
    features, known = tracks.first_features(build_own_config("ice_demo.yml", as_options(settings)))
    table = {name: quality for name, *quality in tracks.rows(tracks.Images("", features, known, k1=15))}
    without, linked, both = table.values()
    assert len(features) == 16 * 4 * 8
    gains = np.array(both) - np.array(without)
    assert gains.min() > 0 and gains.mean() > 0.015, table
    assert min(np.array(both) - np.array(linked)) > -0.005 and max(np.array(both) - np.array(linked)) > 0, table
