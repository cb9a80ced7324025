"""A key on the command line wins over the key that would choose its value."""

from __future__ import annotations

import pytest

from fastreid_ice.config import CHOSEN_BY, Run, value_of
from fastreid_ice.engine.setup import read_config

VALUES = {"CLUSTER.EPS": "0.4", "CLUSTER.K1": "9", "INPUT.SIZE_TRAIN": "[64, 64]", "INPUT.SIZE_TEST": "[64, 64]"}


@pytest.mark.parametrize("key", CHOSEN_BY)
def test_a_named_value_is_used(key: str) -> None:
    by = CHOSEN_BY[key]
    assert value_of(read_config("ice_folder.yml"), by), "for this test"
    named = read_config("ice_folder.yml", [key, VALUES[key]])
    assert not value_of(named, by) and str(value_of(named, key)) == VALUES[key]
    others = [other for other in CHOSEN_BY.values() if other != by]
    assert all(value_of(named, other) for other in others)
    assert value_of(read_config("ice_folder.yml", [key, VALUES[key], by, "True"]), by), "both are named"


def test_in_every_stage(tmp_path) -> None:
    (tmp_path / "mine.yml").write_text("_BASE_: ice_folder.yml\nSTAGES: [{CLUSTER: {AUTO_K1: True, K1: 5}}, {}]\n")
    stages = Run(read_config(str(tmp_path / "mine.yml"), ["CLUSTER.K1", "9"])).stages
    assert [(stage.cfg.CLUSTER.AUTO_K1, stage.cfg.CLUSTER.K1) for stage in stages] == [(False, 9)] * 2
