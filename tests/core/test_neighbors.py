"""Exact nearest neighbours against a full sort, and against the stored lists of the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastreid_ice.core import k_nearest
from golden import load_golden


def random_features(num_rows=57, dim=9, dtype=torch.float64):
    return torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(3), dtype=dtype)


def brute_force(features: np.ndarray, k: int) -> np.ndarray:
    """Each row's neighbours by a full sort: itself, then by descending cosine, then by index."""
    rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    ranks = []
    for i, row in enumerate(rows):
        others = [(-float(row @ other), j) for j, other in enumerate(rows) if j != i]
        ranks.append([i, *(j for _, j in sorted(others))][:k])
    return np.array(ranks)


@pytest.mark.parametrize("chunk_size", [1, 10, 57, 1000])
def test_equals_a_full_sort(chunk_size):
    features = random_features()
    before = features.clone()
    similarities, indices = k_nearest(features, 8, chunk_size=chunk_size)
    np.testing.assert_array_equal(indices, brute_force(features.numpy(), 8))
    expected = torch.nn.functional.cosine_similarity(features[:, None], features[indices], dim=2)
    torch.testing.assert_close(similarities, expected)
    torch.testing.assert_close(features, before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["k30", "k20", "k15", "k20_k2one", "k25_round"])
def test_equals_the_reference_search(name):
    golden = load_golden(f"jaccard_{name}")
    _, indices = k_nearest(golden["features"], int(golden["k1"]), chunk_size=100)
    np.testing.assert_array_equal(indices, golden["initial_rank"])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_and_tensors_of_any_precision(dtype):
    features = random_features().numpy().astype(dtype)
    features.flags.writeable = False
    from_array, from_tensor = k_nearest(features, 5), k_nearest(torch.tensor(features), 5)
    assert from_array[0].dtype == (torch.float64 if dtype == np.float64 else torch.float32)
    assert from_array[1].dtype == torch.int64
    for a, b in zip(from_array, from_tensor, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    np.testing.assert_array_equal(from_array[1], brute_force(features.astype(np.float64), 5))


def test_scale_of_a_row_does_not_matter():
    features = random_features()
    scale = torch.logspace(-3, 3, len(features), dtype=features.dtype)[:, None]
    torch.testing.assert_close(k_nearest(features * scale, 6)[1], k_nearest(features, 6)[1])


def test_itself_comes_first_among_copies_and_copies_follow_by_index():
    # 0.5 and 1 are exact in every precision, so all copies are exactly as similar.
    features = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]]).repeat(4, 1)
    similarities, indices = k_nearest(features, 6)
    evens, odds = [0, 2, 4, 6], [1, 3, 5, 7]
    for i, row in enumerate(indices.tolist()):
        own, other = (evens, odds) if i % 2 == 0 else (odds, evens)
        assert row == [i, *(j for j in own if j != i), *other[:2]] or set(row[4:]) <= set(other)
        assert row[:4] == [i, *(j for j in own if j != i)]
    torch.testing.assert_close(similarities, torch.tensor([1.0, 1, 1, 1, 0.5, 0.5]).expand(8, -1))


def test_more_copies_than_neighbours():
    similarities, indices = k_nearest(torch.ones(20, 3), 5)
    assert indices[:, 0].tolist() == list(range(20))
    assert all(len(set(row)) == 5 for row in indices.tolist())
    assert (similarities <= 1).all()


def test_slices_of_queries_make_up_the_whole():
    features = random_features()
    whole = k_nearest(features, 7)
    parts = [k_nearest(features, 7, queries=slice(start, start + 20)) for start in range(0, 60, 20)]
    nothing = k_nearest(features, 7, queries=slice(100, 200))
    for i in range(2):
        torch.testing.assert_close(torch.cat([part[i] for part in parts]), whole[i])
        assert nothing[i].shape == (0, 7)


def test_progress_sees_every_block():
    sizes = []

    def watch(blocks):
        for block in blocks:
            sizes.append((len(block), len(blocks)))
            yield block

    k_nearest(random_features(), 3, chunk_size=25, progress=watch)
    assert sizes == [(25, 3), (25, 3), (7, 3)]


def test_one_row_and_all_rows():
    assert k_nearest(torch.ones(1, 4), 1)[1].tolist() == [[0]]
    assert sorted(k_nearest(random_features(5), 5)[1][2].tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("features", "arguments", "message"),
    [
        (torch.ones(4, 2), {"k": 5}, r"k must lie in \[1, 4\]"),
        (torch.ones(4, 2), {"k": 0}, r"k must lie in \[1, 4\]"),
        (torch.ones(0, 2), {"k": 1}, r"k must lie in \[1, 0\]"),
        (torch.ones(4, 2), {"k": 1, "chunk_size": 0}, "chunk_size must be at least 1"),
        (torch.ones(4), {"k": 1}, r"features must be a floating point \(N, D\) matrix"),
        (np.ones((4, 2), int), {"k": 1}, r"features must be a floating point \(N, D\) matrix, got torch.int64"),
        (torch.tensor([[1.0], [torch.nan]]), {"k": 1}, "features must be finite .* row 1 and 0 more of 2"),
        (torch.tensor([[torch.inf], [1.0]]), {"k": 1}, "features must be finite .* row 0 and 0 more of 2"),
        (torch.tensor([[1.0], [0.0], [0.0]]), {"k": 1}, "not all zeros in a row, but row 1 and 1 more of 3"),
    ],
)
def test_bad_input_is_named(features, arguments, message):
    with pytest.raises(ValueError, match=message):
        k_nearest(features, **arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees_with_cpu():
    features = random_features(500, 32)
    similarities, indices = k_nearest(features, 20, device="cuda")
    assert similarities.device == indices.device == features.device
    assert k_nearest(features.cuda(), 20)[1].is_cuda
    torch.testing.assert_close(indices, k_nearest(features, 20)[1])
