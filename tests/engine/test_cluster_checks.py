"""The config rules of the clusterers."""

from __future__ import annotations

import pytest

from fastreid_ice import InputError
from fastreid_ice.engine import check_config
from support import small_config


@pytest.mark.parametrize("eps", [1e-6, 0.55, 1.0])
def test_eps_of_every_distance(eps: float) -> None:
    check_config(small_config(CLUSTER__EPS=eps))


@pytest.mark.parametrize("eps", [0.0, -0.5, 1.0001, float("inf"), float("nan")])
def test_an_eps_that_is_no_distance_is_refused(eps: float) -> None:
    with pytest.raises(InputError, match=rf"CLUSTER.EPS {eps} must lie between 0 and 1, 0 excluded"):
        check_config(small_config(CLUSTER__EPS=eps))


@pytest.mark.parametrize("key", ["CLUSTER.NUM_CLUSTERS", "CLUSTER.MIN_CLUSTER_SIZE"])
def test_one_is_no_clustering(key: str) -> None:
    check_config(small_config(**{key: 2}))
    with pytest.raises(InputError, match=f"{key} 1 must be at least 2"):
        check_config(small_config(**{key: 1}))


@pytest.mark.parametrize("name", ["lsh", "hnsw", "ivf"])
def test_an_unknown_search_is_refused(name: str) -> None:
    sentence = f"^CLUSTER.NEIGHBORS '{name}' must be one of exact, cells \\('cells' was called 'ivf'\\)$"
    with pytest.raises(InputError, match=sentence):
        check_config(small_config(CLUSTER__NEIGHBORS=name))
