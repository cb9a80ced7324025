"""Several real processes build one graph: the neighbours, graph and labels of a single process, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from fastreid_ice.core import dbscan, jaccard_graph, k_nearest
from fastreid_ice.core._arrays import _BLOCK
from fastreid_ice.core.shard import ALONE, Shard
from fastreid_ice.engine import launch

# Images and k1: three blocks of rows, the last one short; a single block; fewer images than processes.
CASES = {"blocks": (2 * _BLOCK + 300, 12), "one block": (301, 8), "two images": (2, 2)}


def clustered(num_rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    identity = torch.randint(0, 1 + num_rows // 15, (num_rows,), generator=generator)
    centres = torch.randn(1 + num_rows // 15, 16, generator=generator)
    return centres[identity] + 0.5 * torch.randn(num_rows, 16, generator=generator)


def recluster(num_rows: int, k1: int, shard: Shard) -> dict[str, np.ndarray]:
    features = clustered(num_rows)
    ranks = k_nearest(features, k1, queries=shard.rows(num_rows))[1].numpy()
    ranks = np.concatenate(shard.gather(ranks))
    graph = jaccard_graph(features, ranks, k1=k1, k2=min(k1, 4), max_distance=0.6, shard=shard)
    arrays = {name: getattr(graph, name) for name in ("indptr", "indices", "data")}
    return {"ranks": ranks, "labels": dbscan(graph, eps=0.6), **arrays}


def awkward_value(rank: int) -> dict:
    """Arrays of other sizes in each process, some empty, read-only or strided, and what is no array."""
    frozen = np.arange(rank + 1)
    frozen.flags.writeable = False
    numbers = np.arange(12.0 * rank).reshape(-1, 4)
    return {"rank": rank, "arrays": [frozen, numbers.T, numbers[:, ::2], np.zeros((rank, 0))], "nothing": []}


def run_processes(folder: Path) -> None:
    shard = Shard.of()
    assert (shard.rank, shard.size) == (dist.get_rank(), dist.get_world_size())
    shares: list[int] = []  # blocks of rows that this process computed, of each stage

    def counted(value):
        if isinstance(value, list):
            shares.append(len(value))
        return shard.gather(value)

    found = {name: recluster(*case, replace(shard, gather=counted)) for name, case in CASES.items()}
    torch.save((found, shares, shard.gather(awkward_value(shard.rank))), folder / f"{shard.rank}.pt")


@pytest.fixture(scope="module", params=[2, 3])
def processes(request, tmp_path_factory) -> list[tuple]:
    """What each process found, how many blocks of rows it took, and what it gathered."""
    folder = tmp_path_factory.mktemp("processes")
    launch(run_processes, request.param, args=(folder,), backend="gloo")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(request.param)]


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES))
def test_equals_one_process(processes, case):
    alone = recluster(*CASES[case], ALONE)
    assert case == "two images" or 10 < alone["labels"].max() < len(alone["labels"]) / 4
    for found, _, _ in processes:
        assert found[case].keys() == alone.keys()
        for name, expected in alone.items():
            assert found[case][name].dtype == expected.dtype
            np.testing.assert_array_equal(found[case][name], expected, err_msg=name)


@pytest.mark.slow
def test_each_process_computes_its_share(processes):
    blocks = {name: -(-num_rows // _BLOCK) for name, (num_rows, _) in CASES.items()}
    stages = [number for number in blocks.values() for _ in range(4)]  # expand, weigh, average, compare
    shares = np.array([taken for _, taken, _ in processes])
    assert shares.sum(0).tolist() == stages
    assert (shares.max(0) - shares.min(0) <= 1).all()


@pytest.mark.slow
def test_gather_brings_every_value_to_every_process(processes):
    for _, _, gathered in processes:
        assert [value["rank"] for value in gathered] == list(range(len(processes)))
        for rank, value in enumerate(gathered):
            assert value["nothing"] == []
            for array, expected in zip(value["arrays"], awkward_value(rank)["arrays"], strict=True):
                assert array.dtype == expected.dtype and array.shape == expected.shape
                np.testing.assert_array_equal(array, expected)


def test_contiguous_parts_cover_all_rows():
    for num_rows in (0, 1, 5, 12):
        for size in (1, 2, 3, 7):
            parts = [range(num_rows)[Shard(rank, size).rows(num_rows)] for rank in range(size)]
            assert [row for part in parts for row in part] == list(range(num_rows))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_merge_undoes_dealing_in_turn():
    for size in (1, 2, 3, 7):
        for items in ([], list("a"), list("abcdefgh")):
            hands = [items[rank::size] for rank in range(size)]
            for rank in range(size):
                assert Shard(rank, size, lambda mine, hands=hands: hands).merge(hands[rank]) == items
