"""Exact nearest neighbours against a full sort, and against the stored lists of the reference."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastreid_ice.core import _candidates, _largest, approximate, k_nearest, neighbors
from fastreid_ice.core import screen as screening
from golden import load_golden


def random_features(num_rows=57, dim=9, dtype=torch.float64):
    return torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(3), dtype=dtype)


def brute_force(features: np.ndarray, k: int) -> np.ndarray:
    """Each row's neighbours by a full sort: itself, then by descending cosine, then by index."""
    rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    ranks = []
    for i, row in enumerate(rows):
        similarities = (rows @ row).tolist()
        ranks.append(sorted(range(len(rows)), key=lambda j: (j != i, -similarities[j], j))[:k])
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
    # 0.5 and 1 are exact in every precision, so all copies have exactly the same similarity.
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
        (torch.ones(4, 2), {"k": 1, "method": "lsh"}, "method must be one of exact, cells, got 'lsh'"),
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


def people(num_rows, dim, spread, seed=0):
    """Unit rows, ten around each centre."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_rows // 10, dim, generator=generator)
    return F.normalize(centres.repeat(10, 1) + spread * torch.randn(num_rows, dim, generator=generator))


def hard_sets():
    random = people(700, 64, spread=3.0)
    near = random[:100].repeat(7, 1)
    # Copies that differ by less than float32 resolves between unit rows, and than bfloat16 resolves at all.
    generator = torch.Generator().manual_seed(1)
    offset = F.normalize(torch.randn(700, 64, generator=generator))
    return {
        "no structure": random,
        "one direction": F.normalize(torch.ones(64) + 0.01 * random),
        "near copies": near.double() + 1e-5 * offset.double(),
        "nearer copies": near.double() + 1e-9 * offset.double(),
        "copies": near,
        "one row for all": torch.ones(700, 64),
        "positive and sparse": F.relu(random) ** 4,
        "half precision": people(700, 64, spread=1.0).half(),
        "far from unit": people(700, 64, spread=1.0) * torch.logspace(-10, 15, 700)[:, None],
    }


@pytest.mark.parametrize("precisions", [(torch.bfloat16, torch.float32), (torch.bfloat16,), (torch.float32,), ()])
@pytest.mark.parametrize("name", hard_sets())
def test_every_precision_gives_the_float64_lists(name, precisions, monkeypatch):
    features = hard_sets()[name]
    monkeypatch.setattr(neighbors, "precisions", lambda device: precisions)
    monkeypatch.setattr(_largest, "_SORTED", 90)
    monkeypatch.setattr(_largest, "_LISTED", 200)
    similarities, indices = k_nearest(features, 12, chunk_size=300)
    expected = torch.tensor(brute_force(features.double().numpy(), 12))
    rows = F.normalize(features.double())
    exact = torch.einsum("nd,nkd->nk", rows, rows[indices])
    torch.testing.assert_close(similarities.double(), exact, rtol=0, atol=1e-6)
    if "copies" in name or name == "one row for all":
        # The order of rows that float64 cannot distinguish depends on the order of summation; the similarities do not.
        theirs = torch.einsum("nd,nkd->nk", rows, rows[expected])
        torch.testing.assert_close(exact, theirs, rtol=0, atol=1e-14)
    else:
        torch.testing.assert_close(indices, expected)


def test_copies_are_kept_and_listed_by_index():
    # More copies than neighbours, throughout the set and at odd places of every block.
    copies = people(40, 24, spread=1.0).repeat(60, 1)[:2391]
    _, indices = k_nearest(copies, 30, chunk_size=517)
    for i in (0, 1, 39, 40, 1203, 2390):
        group = [j for j in range(i % 40, len(copies), 40) if j != i]
        assert indices[i].tolist() == [i, *group[:29]]


def test_frames_of_a_video_are_not_compared_one_by_one(monkeypatch, caplog):
    """150 near copies of each of ten people: more than candidates, and fewer than a crowd."""
    generator = torch.Generator().manual_seed(2)
    features = people(10, 64, spread=1.0).repeat_interleave(150, 0)
    features += 1e-6 * torch.randn(features.shape, generator=generator)
    expected = k_nearest(features, 30)[0]
    with monkeypatch.context() as patched, caplog.at_level("INFO"):
        patched.setattr(neighbors, "Scan", pytest.fail)
        found, _ = k_nearest(features, 30)
        assert not caplog.messages
        patched.undo()
        patched.setattr(neighbors, "_CROWD", 100)
        assert torch.equal(k_nearest(features, 30)[0], found)
    assert torch.equal(found, expected)
    assert caplog.messages == [
        "Neighbors of 1500 of 1500 rows are too close to each other for a product: comparing them one by one"
    ]


def test_lists_follow_from_the_features_alone(monkeypatch):
    features = people(640, 48, spread=2.0)
    whole = k_nearest(features, 20)
    monkeypatch.setattr(neighbors, "precisions", lambda device: (torch.float32,))
    monkeypatch.setattr(_largest, "_SORTED", 77)
    monkeypatch.setattr(_largest, "_LISTED", 101)
    parts = [k_nearest(features, 20, chunk_size=31, queries=slice(start, start + 91)) for start in range(0, 640, 91)]
    for i in range(2):
        torch.testing.assert_close(torch.cat([part[i] for part in parts]), whole[i], rtol=0, atol=0)


def test_low_precision_settles_most_rows_by_itself():
    # Otherwise it would be slower than only float32.
    features = people(4000, 256, spread=1.5)
    rows, scale = neighbors.checked_rows(features, None)
    certain = screening.Screen(torch.bfloat16, rows, scale, 30)(torch.arange(4000))[2]
    assert certain.float().mean() > 0.95


def test_a_machine_that_computes_less_precisely_than_assumed_is_found_out():
    features = people(500, 64, spread=1.0)
    rows, scale = neighbors.checked_rows(features, None)
    screen = screening.Screen(torch.float32, rows, scale, 10)
    queries = torch.arange(500)
    assert screen(queries)[2].all()
    screen.rounded = screen.rounded.bfloat16()  # like a GPU that multiplies float32 in a shorter format
    assert not screen(queries)[2].any()


def test_ranking_on_any_device_is_that_of_the_cpu():
    features = people(300, 40, spread=2.0)
    rows, scale = neighbors.checked_rows(features, None)
    generator = torch.Generator().manual_seed(2)
    queries = torch.arange(0, 300, 3)
    others = torch.stack([torch.randperm(300, generator=generator) for _ in queries])
    others = others[others != queries[:, None]].view(100, 299)
    candidates = torch.cat([queries[:, None], others], 1)[:, :60]
    counts = torch.randint(8, 61, (100,), generator=generator)
    scores = (F.normalize(rows)[queries, None] * F.normalize(rows)[candidates]).sum(2)
    scores[7, 3] += 0.1
    arguments = (rows, scale, queries, candidates, counts, 8, scores, torch.full_like(scores, 1e-6))
    in_numba, in_torch = _candidates.rank_candidates(*arguments), _candidates._rank_in_torch(*arguments)
    torch.testing.assert_close(in_numba[0], in_torch[0])
    for i in (1, 2):
        torch.testing.assert_close(in_numba[i], in_torch[i])
    assert (~in_numba[2]).nonzero().tolist() == [[7]]


def test_read_only_arrays_are_taken_without_a_warning(recwarn):
    features = random_features().numpy()
    features.flags.writeable = False
    k_nearest(features, 3)
    assert not recwarn.list


class TestApproximate:
    def test_misses_little(self):
        features = people(5000, 32, spread=0.6)
        exact, found = k_nearest(features, 10), k_nearest(features, 10, method="cells")
        overlap = (exact[1][:, :, None] == found[1][:, None]).any(2).float().mean()
        assert overlap > 0.99
        assert found[1][:, 0].tolist() == list(range(5000))
        # The rows found have their exact similarity, are in order, and none occurs twice.
        torch.testing.assert_close((features[found[1]] * features[:, None]).sum(2), found[0], rtol=0, atol=1e-6)
        assert (found[0].diff(dim=1) <= 0).all()
        assert (found[1].sort(1).values.diff(dim=1) > 0).all()

    @pytest.mark.parametrize("num_rows", [1, 2, 63, 64, 200])
    def test_small_sets_are_complete(self, num_rows):
        features = people(200, 8, spread=1.0)[:num_rows]
        k = min(num_rows, 40)
        torch.testing.assert_close(k_nearest(features, k, method="cells")[1], k_nearest(features, k)[1])

    def test_lists_that_come_short_are_searched_exactly(self):
        # Islands: most cells hold fewer rows than the number of neighbours.
        features = torch.eye(50).repeat_interleave(4, 0)[:, :50] + 0.01 * torch.rand(200, 50)
        _, indices = k_nearest(features, 150, method="cells")
        assert all(len(set(row)) == 150 for row in indices.tolist())

    def test_a_slice_of_queries(self):
        features = people(300, 16, spread=0.5)
        _, part = k_nearest(features, 5, method="cells", queries=slice(100, 170))
        exact = k_nearest(features, 5, queries=slice(100, 170))[1]
        assert (part == exact).float().mean() > 0.98

    def test_cameras_do_not_part_people(self):
        # Offsets as large as the noise: the cells of a k-means quantiser would be cameras, not people.
        generator = torch.Generator().manual_seed(5)
        offsets = torch.randn(6, 64, generator=generator)[torch.arange(6000) % 6]
        features = people(6000, 64, spread=0.5) + 0.5 * offsets
        exact, found = k_nearest(features, 15)[1], k_nearest(features, 15, method="cells")[1]
        assert (exact[:, :, None] == found[:, None]).any(2).float().mean() > 0.95


@pytest.mark.parametrize(("num_rows", "size"), [(300, 3), (3, 4)])
def test_processes_share_what_is_compared_with_the_centres(num_rows, size, monkeypatch):
    features = people(300, 16, spread=0.5)[:num_rows]
    whole = k_nearest(features, 3, method="cells")
    bounds = [num_rows * rank // size for rank in range(size + 1)]
    compared = []
    kernel = approximate._nearest_cells

    def counting(rows, scale, queries, progress):
        compared.append(len(queries))
        return kernel(rows, scale, queries, progress)

    def run(rank, gather):
        return k_nearest(features, 3, method="cells", queries=slice(*bounds[rank : rank + 2]), gather=gather)

    monkeypatch.setattr(approximate, "_nearest_cells", counting)
    parts = in_processes(run, size)
    assert sorted(compared) == np.diff(bounds).tolist()
    for i in range(2):
        assert torch.equal(torch.cat([part[i] for part in parts]), whole[i])


def in_processes(run, size):
    """What ``run(rank, gather)`` returns in each of ``size`` threads, which represent processes."""
    hands, barrier = [None] * size, threading.Barrier(size)

    def gather(rank, part):
        hands[rank] = part
        barrier.wait()
        joined = torch.cat(hands)
        barrier.wait()
        return joined

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: run(rank, partial(gather, rank)), range(size)))


@pytest.mark.parametrize("dim", [16, 256])
def test_cells_do_not_depend_on_the_precision_nor_on_blocks(dim, monkeypatch):
    # Each process measures which precision is the fastest, and other work may change that.
    features = people(6000, dim, spread=1.0)
    found = []
    for precisions in ((torch.float32,), (torch.bfloat16, torch.float32)):
        monkeypatch.setattr(neighbors, "precisions", lambda device, precisions=precisions: precisions)
        monkeypatch.setattr(approximate, "precisions", lambda device, precisions=precisions: precisions)
        found += [k_nearest(features, 10, chunk_size=size, method="cells") for size in (100, 1024)]
    for similarities, indices in found[1:]:
        assert torch.equal(indices, found[0][1])
        assert torch.equal(similarities, found[0][0])


def test_a_crowd_does_not_slow_cells_down(monkeypatch):
    # Equal rows are all in the same cells. Comparing all of them would cost N x N products.
    compared = []
    kernel = approximate._nearest_block

    def counting(start, stop, rows, scale, queries, groups, starts, members, k):
        sizes = np.diff(starts)
        compared.append(sizes[groups[queries[start:stop]]].sum())
        return kernel(start, stop, rows, scale, queries, groups, starts, members, k)

    monkeypatch.setattr(approximate, "_nearest_block", counting)
    _, indices = k_nearest(torch.ones(20_000, 4), 10, method="cells")
    cells, lists = 8 * 16 * 32, 10 * 10
    assert sum(compared) <= 20_000 * (cells + lists)
    assert (indices.sort(1).values.diff(dim=1) > 0).all()


@pytest.mark.gpu
def test_gpu_agrees_with_cpu():
    features = random_features(500, 32)
    similarities, indices = k_nearest(features, 20, device="cuda")
    assert similarities.device == indices.device == features.device
    assert k_nearest(features.cuda(), 20)[1].is_cuda
    torch.testing.assert_close(indices, k_nearest(features, 20)[1])
