"""The sparse Jaccard graph against the reference's dense matrices, and each stage against a loop over sets."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from scipy import sparse

from fastreid_ice.core import jaccard_graph, k_nearest
from fastreid_ice.core._arrays import map_blocks
from fastreid_ice.core.jaccard import (
    _checked,
    _graph_of_tensors,
    average_over_neighbors,
    expand,
    jaccard_distances,
    mutual_neighbors,
    neighbor_weights,
)
from golden import load_golden
from support import ROOT

FILES = ["k30", "k20", "k15", "k20_k2one", "k25_round", "dup", "dupblock", "dupblock_k2one"]


def dense(graph: sparse.csr_array) -> np.ndarray:
    """The full matrix of distances: absent pairs are at distance 1, stored zeros stay 0."""
    matrix = np.ones(graph.shape, graph.dtype)
    entries = graph.tocoo()
    matrix[entries.row, entries.col] = entries.data
    return matrix


def sets(matrix: sparse.csr_array) -> list[set[int]]:
    return [set(matrix.indices[a:b].tolist()) for a, b in zip(matrix.indptr, matrix.indptr[1:], strict=False)]


class Oracle:
    """The definition, set by set and row by row, in float64."""

    def __init__(self, features: np.ndarray, ranks: np.ndarray, k1: int, k2: int) -> None:
        everyone, ranks = range(len(ranks)), ranks[:, :k1].tolist()
        rows = features / np.linalg.norm(features, axis=1, keepdims=True)

        def mutual(k):
            return [{j for j in ranks[i][: k + 1] if i in ranks[j][: k + 1]} for i in everyone]

        self.reciprocal, self.half = mutual(k1), mutual(round(k1 / 2))
        self.expanded = []
        for own in self.reciprocal:
            accepted = (self.half[q] for q in own if 3 * len(self.half[q] & own) > 2 * len(self.half[q]))
            self.expanded.append(own.union(*accepted))
        self.weights = np.zeros((len(ranks), len(ranks)))
        for i in everyone:
            for j in self.expanded[i]:
                self.weights[i, j] = np.exp(2 * rows[i] @ rows[j] - 2)
            self.weights[i] /= self.weights[i].sum() or 1
        self.averaged = np.stack([self.weights[ranks[i][:k2]].mean(0) for i in everyone])
        self.distances = np.ones_like(self.weights)
        for i in everyone:
            for j in everyone:
                t = np.minimum(self.averaged[i], self.averaged[j]).sum()
                self.distances[i, j] = max(0, 1 - t / (2 - t))


@pytest.fixture(scope="module")
def people():
    """Clustered features with copies, neither sorted nor of unit norm."""
    generator = torch.Generator().manual_seed(5)
    identity = torch.randint(0, 9, (110,), generator=generator)
    features = torch.randn(9, 12, generator=generator)[identity] + 0.6 * torch.randn(110, 12, generator=generator)
    features[90:100] = features[40]
    features *= torch.rand(110, 1, generator=generator) + 0.5
    return features.numpy(), k_nearest(features, 20)[1].numpy()


@pytest.mark.parametrize("name", FILES)
def test_equals_the_reference(name):
    golden = load_golden(f"jaccard_{name}")
    features, ranks = golden["features"], golden["initial_rank"]
    graph = jaccard_graph(features, ranks, k1=int(golden["k1"]), k2=int(golden["k2"]))
    assert graph.dtype == np.float32
    assert graph.data.min() >= 0
    assert graph.data.max() < 1
    np.testing.assert_allclose(dense(graph), golden["jaccard"], rtol=0, atol=3e-6)
    for before, after in zip(load_golden(f"jaccard_{name}").values(), golden.values(), strict=True):
        np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("name", ["k30", "k25_round"])
def test_equals_the_reference_with_its_own_search(name):
    golden = load_golden(f"jaccard_{name}")
    features, k1 = torch.tensor(golden["features"]), int(golden["k1"])
    graph = jaccard_graph(features, k_nearest(features, k1)[1], k1=k1, k2=int(golden["k2"]))
    np.testing.assert_allclose(dense(graph), golden["jaccard"], rtol=0, atol=3e-6)


@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (13, 3), (7, 1), (3, 2), (2, 2)])
def test_every_stage_equals_the_definition(people, k1, k2):
    features, ranks = people
    oracle = Oracle(features.astype(np.float64), ranks, k1, k2)
    reciprocal, half = mutual_neighbors(ranks[:, :k1]), mutual_neighbors(ranks[:, : round(k1 / 2) + 1])
    assert sets(reciprocal) == oracle.reciprocal
    assert sets(half) == oracle.half
    expanded = expand(reciprocal, half)
    assert sets(expanded) == oracle.expanded
    weights = neighbor_weights(features, expanded)
    np.testing.assert_allclose(weights.toarray(), oracle.weights, rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        average_over_neighbors(weights, ranks[:, :k2]).toarray(), oracle.averaged, rtol=0, atol=1e-6
    )
    graph = jaccard_graph(features, ranks, k1=k1, k2=k2)
    np.testing.assert_allclose(dense(graph), oracle.distances, rtol=0, atol=3e-6)


@pytest.mark.parametrize("max_distance", [0.2, 0.55, 0.999])
def test_max_distance_only_drops_entries(people, max_distance):
    features, ranks = people
    everything = jaccard_graph(features, ranks, k1=15, k2=4)
    near = jaccard_graph(features, ranks, k1=15, k2=4, max_distance=max_distance)
    expected = dense(everything)
    expected[expected > np.float32(max_distance)] = 1
    np.testing.assert_array_equal(dense(near), expected)
    assert near.nnz == (everything.data <= np.float32(max_distance)).sum()


def test_symmetric_sorted_and_linear(people):
    features, ranks = people
    graph = jaccard_graph(features, ranks, k1=15, k2=4)
    assert (graph != graph.T).nnz == 0
    assert graph.has_canonical_format
    assert graph.nnz == (dense(graph) < 1).sum()
    assert graph.indices.dtype == graph.indptr.dtype == np.int32


def test_zeros_are_stored():
    # Two groups of equal rows, each as large as the neighbourhood: all distances within a group are 0.
    features = np.repeat(np.eye(2, 3, dtype=np.float32), 4, axis=0)
    ranks = np.array([[i, *(j for j in group if j != i)] for group in ((0, 1, 2, 3), (4, 5, 6, 7)) for i in group])
    graph = jaccard_graph(features, ranks, k1=4, k2=1)
    assert graph.nnz == 32
    np.testing.assert_allclose(graph.data, 0, atol=1e-6)
    np.testing.assert_allclose(dense(graph)[:4, 4:], 1)


def test_a_point_without_mutual_neighbours_is_at_distance_1_from_itself():
    ranks = np.array([[1, 2], [2, 1], [1, 2], [1, 2]])  # no list has 0 or 3, not even their own
    graph = jaccard_graph(np.eye(4, dtype=np.float32), ranks, k1=2, k2=1)
    assert set(graph.tocoo().row.tolist()) == {1, 2}


def test_a_distance_that_rounds_to_1_is_absent():
    weights = sparse.csr_array(np.array([[1, 1e-9, 0], [0, 1, 0], [0, 0, 1]], np.float32))
    np.testing.assert_array_equal(jaccard_distances(weights).toarray() > 0, np.zeros((3, 3)))
    assert jaccard_distances(weights).nnz == 3


def test_does_not_depend_on_threads_blocks_or_columns(people, monkeypatch):
    features, ranks = people
    graph = jaccard_graph(features, ranks, k1=15, k2=4)
    threads = torch.get_num_threads()
    monkeypatch.setattr("fastreid_ice.core.jaccard.map_blocks", partial(map_blocks, block=7))
    try:
        for number in (1, 4):
            torch.set_num_threads(number)
            other = jaccard_graph(torch.tensor(features), torch.tensor(ranks[:, :15]), k1=15, k2=4)
            for name in ("data", "indices", "indptr"):
                np.testing.assert_array_equal(getattr(graph, name), getattr(other, name))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_precisions_and_read_only_input(people, dtype, monkeypatch):
    monkeypatch.setattr("fastreid_ice.core.jaccard._COPIED", 7)
    features, ranks = people[0].astype(dtype), people[1].astype(np.int32)
    expected = Oracle(features.astype(np.float64), ranks, 12, 3).distances
    for array in (features, ranks):
        array.flags.writeable = False
    np.testing.assert_allclose(dense(jaccard_graph(features, ranks, k1=12, k2=3)), expected, rtol=0, atol=3e-6)


def test_brain_floats_and_strided_features(people):
    features, ranks = torch.tensor(people[0]).bfloat16(), people[1]
    expected = jaccard_graph(features.float(), ranks, k1=12, k2=3)
    for other in (features, features.float().T.contiguous().T, features.float().repeat(1, 2)[:, :12]):
        graph = jaccard_graph(other, ranks, k1=12, k2=3)
        np.testing.assert_allclose(dense(graph), dense(expected), rtol=0, atol=1e-6)


class TestTensorOperations:
    """Those of other devices, computed on the CPU as well: the stored pairs and distances of the compiled loops."""

    @pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
    def by_tensors(self, request):
        def build(features, ranks, *, k1, k2, max_distance=1.0):
            return _graph_of_tensors(*_checked(features, ranks, k1, k2), k2, max_distance, request.param)

        return build

    @staticmethod
    def assert_equal(found: sparse.csr_array, expected: sparse.csr_array) -> None:
        assert found.dtype == np.float32 and found.indices.dtype == found.indptr.dtype == np.int32
        np.testing.assert_array_equal(found.indptr, expected.indptr)
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_allclose(found.data, expected.data, rtol=0, atol=3e-6)
        assert (found != found.T).nnz == 0

    @pytest.mark.parametrize("name", FILES)
    def test_equal_the_reference_and_the_loops(self, by_tensors, name):
        golden = load_golden(f"jaccard_{name}")
        arguments = (golden["features"], golden["initial_rank"])
        sizes = {"k1": int(golden["k1"]), "k2": int(golden["k2"])}
        graph = by_tensors(*arguments, **sizes)
        np.testing.assert_allclose(dense(graph), golden["jaccard"], rtol=0, atol=3e-6)
        self.assert_equal(graph, jaccard_graph(*arguments, **sizes))

    @pytest.mark.parametrize(("k1", "k2"), [(20, 6), (13, 3), (7, 1), (3, 2), (2, 2)])
    @pytest.mark.parametrize("max_distance", [0.55, 1.0])
    def test_equal_the_loops(self, by_tensors, people, k1, k2, max_distance):
        sizes = {"k1": k1, "k2": k2, "max_distance": max_distance}
        self.assert_equal(by_tensors(*people, **sizes), jaccard_graph(*people, **sizes))

    @pytest.mark.parametrize("at_once", [1, 40, 1000])
    def test_do_not_depend_on_blocks(self, by_tensors, people, at_once, monkeypatch):
        whole = by_tensors(*people, k1=15, k2=4)
        monkeypatch.setattr("fastreid_ice.core._jaccard_tensors._AT_ONCE", at_once)
        parts = by_tensors(*people, k1=15, k2=4)
        for name in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_precisions(self, by_tensors, people, dtype):
        arguments = torch.tensor(people[0]).to(dtype), torch.tensor(people[1])
        self.assert_equal(by_tensors(*arguments, k1=12, k2=3), jaccard_graph(*arguments, k1=12, k2=3))

    def test_points_without_mutual_neighbours(self, by_tensors):
        features, ranks = np.eye(4, dtype=np.float32), np.array([[1, 2], [2, 1], [1, 2], [1, 2]])
        self.assert_equal(by_tensors(features, ranks, k1=2, k2=1), jaccard_graph(features, ranks, k1=2, k2=1))
        in_a_circle = (np.arange(5)[:, None] + [1, 2]) % 5
        assert by_tensors(np.eye(5, dtype=np.float32), in_a_circle, k1=2, k2=2).nnz == 0

    @pytest.mark.gpu
    def test_of_any_device(self, people):
        self.assert_equal(jaccard_graph(*people, k1=15, k2=4, device="cuda"), jaccard_graph(*people, k1=15, k2=4))


PEAK = """
import re
from pathlib import Path
import numpy as np
from fastreid_ice.core import jaccard_graph

def peak():  # of only this process: getrusage starts from its parent's
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

def build(num_rows):
    features = np.random.default_rng(0).standard_normal((num_rows, 16), np.float32)
    offsets = np.array(sorted(range(-15, 15), key=abs))
    ranks = ((np.arange(num_rows)[:, None] + offsets) % num_rows).astype(np.int32)
    before = peak()
    jaccard_graph(features, ranks, max_distance=0.55)
    return peak() - before

build(100)  # compiles
print(build(60_000))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_beside_the_arguments():
    """About 3 kilobytes per image; one bit for every pair of images would be 7.5."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, cwd=ROOT)
    assert 0 < int(done.stdout) < 3 * 60_000


FEATURES, RANKS = np.eye(5, dtype=np.float32), np.array([[0, 1, 2], [1, 0, 2], [2, 1, 0], [3, 4, 0], [4, 3, 0]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k1": 1}, "k1 must be at least 2"),
        ({"k1": 4}, r"k1 = 4 neighbours need as many columns of ranks .* shape \(5, 3\)"),
        ({"k2": 0}, r"k2 must lie in \[1, k1 = 3\]"),
        ({"k2": 4}, r"k2 must lie in \[1, k1 = 3\]"),
        ({"max_distance": 0}, r"max_distance must lie in \(0, 1\]"),
        ({"max_distance": 1.1}, r"max_distance must lie in \(0, 1\]"),
        ({"features": FEATURES[0]}, r"features must be a floating point \(N, D\) matrix"),
        ({"features": FEATURES.astype(int)}, r"features must be a floating point \(N, D\) matrix"),
        ({"features": FEATURES * np.nan}, "features must be finite .* row 0 and 4 more of 5 are; check the network"),
        ({"features": np.diag([1, 1, np.inf, 1, 1])}, "features must be finite .* row 2 and 0 more"),
        ({"features": np.diag([1, 1, 1, 0, 1]).astype(np.float16)}, "not all zeros in a row, but row 3 and 0 more"),
        ({"features": np.diag([1e300, 1, 1, 1, 1])}, "features must be finite .* row 0 and 0 more"),
        ({"features": FEATURES.tolist() + [[1.0]]}, "features must be an array or a tensor"),
        ({"features": FEATURES.astype(object)}, r"features must be a floating point \(N, D\) matrix"),
        ({"features": FEATURES[:, :0]}, "not all zeros in a row, but row 0 and 4 more"),
        ({"ranks": RANKS[:, 0]}, r"ranks must be an integer \(N, k\) matrix, got int64 \(5,\)"),
        ({"features": FEATURES[:0], "ranks": RANKS[:0]}, "k1 = 3 neighbours need .* as many images"),
        ({"k1": 2.5}, "k1 must be an integer, got 2.5"),
        ({"k2": "two"}, "k2 must be an integer, got 'two'"),
        ({"max_distance": np.nan}, r"max_distance must lie in \(0, 1\]"),
        ({"max_distance": None}, r"max_distance must lie in \(0, 1\], got None"),
        ({"features": FEATURES[:4]}, "ranks and features must have the same number of rows, got 5 and 4"),
        ({"ranks": RANKS.astype(float)}, r"ranks must be an integer \(N, k\) matrix"),
        ({"ranks": RANKS + 1}, r"ranks must lie in \[0, 5\), got values from 1 to 5"),
        ({"ranks": RANKS - 1}, r"ranks must lie in \[0, 5\), got values from -1 to 3"),
        ({"ranks": RANKS * 0}, "ranks must list no neighbour twice in a row, as row 0 does"),
        ({"features": FEATURES[:2], "ranks": np.zeros((2, 3), int)}, "k1 = 3 neighbours need .* as many images"),
    ],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        jaccard_graph(**({"features": FEATURES, "ranks": RANKS, "k1": 3, "k2": 2} | changes))
