"""The table of docs/market1501.md is that of the recorded runs."""

from __future__ import annotations

from benchmarks.market import METHODS as ROWS
from benchmarks.results import CHARTED, LONGER, MARK, METHODS, PAGE, PUBLISHED, VARIANTS, curve, read_runs, table


def run(*evaluated: float, seed: int = 0) -> dict:
    """A run of as many epochs; a mAP of 0 is an epoch without evaluation."""
    clusters = {"cluster/number": 700.0, "cluster/noise_share": 0.2, "cluster/ari": 0.5}
    epochs = [clusters | ({"mAP": value, "Rank-1": value + 30} if value else {}) for value in evaluated]
    epochs[0] |= {"start/mAP": 31.0}
    return {"commit": "abc", "seed": seed, "epochs": epochs}


def test_the_page_has_the_table_of_the_recorded_runs() -> None:
    runs = read_runs()
    assert MARK + table(runs) in PAGE.read_text(), "run `python -m benchmarks.results`"
    assert set(METHODS) == set(ROWS)
    assert {method for method, start in runs if start == "osnet"} <= {*METHODS, *PUBLISHED, *LONGER, *VARIANTS}
    assert {*CHARTED} <= {method for method, _ in runs}
    assert all(found["epochs"][-1]["mAP"] for seeds in runs.values() for found in seeds)


def test_rows_are_sorted_and_seeds_are_averaged() -> None:
    runs = {
        ("ice", "osnet"): [run(0, 40, 0, 45, 0, 50), run(0, 41, 0, 47, 0, 54, seed=1)],
        ("baseline", "osnet"): [run(30, 60)],
        ("fast", "osnet"): [run(30, 40, 50, 61)],
        ("dcmip", "osnet"): [run(0, 39, 0, 44, 0, 49)],
        ("ice", "mobilenetv2"): [run(0, 20)],
    }
    assert table(runs).splitlines()[2:] == [
        "| DCMIP, both stages (`dcmip`) | 39.0 / 69.0 | 44.0 / 74.0 | 49.0 / 79.0 | 700 | 20 | 0.500 | 1 | abc |",
        "| ICE, camera-aware (`ice`) | 40.5 ± 0.7 / 70.5 ± 0.7 | 46.0 ± 1.4 / 76.0 ± 1.4 | 52.0 ± 2.8 / 82.0 ± 2.8 "
        "| 700 | 20 | 0.500 | 2 | abc |",
        "| fast-reid's Baseline, with labels (`baseline`) |  |  | 60.0 / 90.0 | 700 | 20 | 0.500 | 1 | abc |",
        "| O2CAP, `CLUSTER.CAMERA_NORM`, averaged weights, first layers frozen, clustered every 225 steps (`fast`) "
        "|  |  | 61.0 / 91.0 | 700 | 20 | 0.500 | 1 | abc |",
    ]
    assert curve(runs["ice", "osnet"][0]) == [(0, 31), (2, 40), (4, 45), (6, 50)]
