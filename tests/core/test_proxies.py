"""Centroids and proxy updates against the stored memories of the reference, and against loops over clusters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastreid_ice.core import (
    camera_centroids,
    centroids,
    draw_batch_instances,
    draw_instances,
    update_each,
    update_hardest,
    update_mean,
)
from golden import load_golden

CLUSTERINGS = ["base", "mixed", "gaps", "emptycam", "onecluster"]
MEMORIES = ["easy", "pk4", "pk16", "uneven"]
UPDATES = [update_hardest, update_mean, update_each]


def tensors(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.as_tensor(value) for key, value in load_golden(name).items()}


@pytest.mark.parametrize("name", CLUSTERINGS)
def test_centroids_equal_the_reference(name):
    golden = tensors(f"camera_proxies_{name}")
    torch.testing.assert_close(centroids(golden["cf"], golden["labels"]), golden["centers"], rtol=0, atol=1e-6)
    centers = centroids(golden["cf"].double(), golden["labels"])
    torch.testing.assert_close(centers, golden["centers_f64"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["init_a", "init_b"])
def test_centroids_of_a_memory_at_the_start_of_an_epoch(name):
    golden = tensors(f"dcmip_memory_{name}")
    centers = centroids(golden["features"], golden["labels"])
    torch.testing.assert_close(centers, golden["cluster_features"], rtol=0, atol=1e-6)
    torch.testing.assert_close(F.normalize(centers).repeat(2, 1), golden["cluster_memory"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CLUSTERINGS)
def test_camera_centroids_equal_the_reference(name):
    golden = tensors(f"camera_proxies_{name}")
    features = golden["cf"].clone()
    proxies, labels, cameras = camera_centroids(features, golden["labels"], golden["cams"])
    torch.testing.assert_close(proxies, golden["proxies"], rtol=0, atol=1e-6)
    torch.testing.assert_close(labels, golden["proxy_labels"])
    torch.testing.assert_close(cameras, golden["proxy_cams"])
    torch.testing.assert_close(features, golden["cf"], rtol=0, atol=0)


def test_camera_ids_may_be_any_integers():
    features = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels, cameras = torch.arange(30) % 4 - 1, torch.tensor([-1, 10**12, 7])[torch.arange(30) % 3]
    proxies, proxy_labels, proxy_cameras = camera_centroids(features, labels, cameras)
    pairs = sorted({(c, k) for c, k in zip(cameras.tolist(), labels.tolist(), strict=True) if k >= 0})
    assert list(zip(proxy_cameras.tolist(), proxy_labels.tolist(), strict=True)) == pairs
    for proxy, (camera, label) in zip(proxies, pairs, strict=True):
        members = features[(cameras == camera) & (labels == label)]
        torch.testing.assert_close(proxy, F.normalize(members.mean(0), dim=0))


def test_all_noise_gives_no_proxies():
    features, noise = torch.randn(5, 3), torch.full((5,), -1)
    assert centroids(features, noise).shape == (0, 3)
    proxies, labels, cameras = camera_centroids(features, noise, torch.zeros(5, dtype=torch.int64))
    assert proxies.shape == (0, 3)
    assert labels.shape == cameras.shape == (0,)


def test_centroids_carry_gradient():
    features = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, -1, 1, 0, 1])
    assert torch.autograd.gradcheck(lambda x: centroids(x, labels), features)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: centroids(torch.ones(3, 2), torch.tensor([0, 2, 0])), "no image has label 1"),
        (lambda: centroids(torch.ones(3, 2), torch.tensor([0, 1])), "labels must hold one entry per row of features"),
        (
            lambda: camera_centroids(torch.ones(2, 2), torch.tensor([0, 1]), torch.tensor([0])),
            r"cameras must have the shape of labels, \(2,\), got \(1,\)",
        ),
        (lambda: draw_instances(torch.zeros(3).long(), 0), "num_instances must be at least 1, got 0"),
        (
            lambda: update_mean(torch.ones(3, 2), torch.ones(4, 3), torch.zeros(4).long(), momentum=0.1),
            r"proxies \(C, D\) and features \(B, D\) must share D",
        ),
        (
            lambda: update_each(torch.ones(3, 2), torch.ones(4, 2), torch.zeros(3).long(), momentum=0.1),
            "labels must hold one entry per row of features",
        ),
        (
            lambda: update_hardest(torch.ones(3, 2), torch.ones(4, 2), torch.zeros(4).long(), momentum=1.1),
            r"momentum must lie in \[0, 1\], got 1.1",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("precision", ["", "_f64"])
@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.parametrize(
    ("array", "start", "updates"),
    [
        ("cc_plain_mem", "init_uni", [update_each]),
        ("cc_hard_mem", "init_uni", [update_hardest]),
        ("cm_mem", "init_uni", [update_each]),
        ("hybrid_every_mem", "init_hybrid", [update_each, update_mean]),
        ("hybrid_hardest_mem", "init_hybrid", [update_hardest, update_mean]),
        ("cmhard_mem_cluster", "init_hybrid", [update_each, update_mean]),
    ],
)
def test_memory_equals_the_reference_after_every_pass(name, array, start, updates, precision):
    golden = tensors(f"dcmip_memory_{name}")
    expected = golden[array + precision] if array + precision in golden else golden[array]
    memory, inputs = golden[start].to(expected.dtype), golden["inputs"].to(expected.dtype)
    for features, labels, after in zip(inputs, golden["targets"], expected, strict=True):
        halves = memory.chunk(len(updates))
        momentum = float(golden["momentum"])
        memory = torch.cat(
            [update(half, features, labels, momentum=momentum) for update, half in zip(updates, halves, strict=True)]
        )
        torch.testing.assert_close(memory, after, rtol=0, atol=1e-9 if precision else 2e-6)


def loop_update(update, proxies, features, labels, momentum):
    """The update of each cluster, one after the other."""
    proxies, features = proxies.clone(), F.normalize(features)
    for k in range(len(proxies)):
        members = features[labels == k]
        if len(members) == 0:
            continue
        incoming = {
            update_hardest: lambda k=k, x=members: x[(x @ proxies[k]).argmin()][None],
            update_mean: lambda x=members: x.mean(0, keepdim=True),
            update_each: lambda x=members: x,
        }[update]()
        for row in incoming:
            proxies[k] = F.normalize(momentum * proxies[k] + (1 - momentum) * row, dim=0)
    return proxies


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("seed", range(5))
def test_updates_equal_a_loop(update, seed):
    generator = torch.Generator().manual_seed(seed)
    proxies = F.normalize(torch.randn(12, 5, generator=generator, dtype=torch.float64))
    features = 3 * torch.randn(40, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, 9, (40,), generator=generator)  # noise, and clusters 9 to 11 are absent
    before = proxies.clone(), features.clone()
    updated = update(proxies, features, labels, momentum=0.3)
    torch.testing.assert_close(updated, loop_update(update, proxies, features, labels, 0.3))
    torch.testing.assert_close(updated.norm(dim=1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(updated[9:], proxies[9:], rtol=0, atol=0)
    torch.testing.assert_close((proxies, features), before, rtol=0, atol=0)


@pytest.mark.parametrize("update", UPDATES)
def test_updates_of_odd_batches(update):
    proxies = F.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    empty = update(proxies, torch.empty(0, 4), torch.empty(0, dtype=torch.int64), momentum=0.1)
    noise = update(proxies, torch.ones(2, 4), torch.tensor([-1, -1]), momentum=0.1)
    torch.testing.assert_close(empty, proxies, rtol=0, atol=0)
    torch.testing.assert_close(noise, proxies, rtol=0, atol=0)
    kept = update(proxies, torch.ones(2, 4), torch.tensor([1, 1]), momentum=1.0)
    torch.testing.assert_close(kept, proxies)
    replaced = update(proxies, torch.ones(2, 4), torch.tensor([1, 1]), momentum=0.0)
    torch.testing.assert_close(replaced[1], torch.full((4,), 0.5))


@pytest.mark.parametrize("update", UPDATES)
def test_updates_keep_no_gradient_and_the_precision_of_the_proxies(update):
    proxies = F.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    features = torch.ones(2, 4, dtype=torch.float16, requires_grad=True)
    updated = update(proxies, features, torch.tensor([0, 2]), momentum=0.1)
    assert updated.dtype == torch.float32
    assert not updated.requires_grad


def test_the_first_of_equally_hard_members_counts():
    proxies = torch.tensor([[1.0, 0.0]])
    members = torch.tensor([[1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
    updated = update_hardest(proxies, members, torch.zeros(3, dtype=torch.int64), momentum=0.0)
    np.testing.assert_allclose(updated, [[0.0, -1.0]])


@pytest.mark.parametrize("num_instances", [1, 3, 16])
def test_instances_are_members_repeated_only_where_they_must_be(num_instances):
    labels = torch.tensor([5] * 4 + [-1] * 3 + [0] + [2] * 17 + [9] * 16)[torch.randperm(41)]
    clusters, members = draw_instances(labels, num_instances)
    assert clusters.tolist() == [0, 2, 5, 9]
    assert members.shape == (4, num_instances)
    for k, drawn in zip(clusters.tolist(), members, strict=True):
        assert (labels[drawn] == k).all()
        times = torch.bincount(drawn, minlength=41)[labels == k]
        assert times.max() - times.min() <= 1
        assert (times > 0).sum() == min(num_instances, len(times))


def test_every_member_is_as_likely_in_every_slot():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([1, 0, 1, 1, 0, 1])
    draws = torch.stack([draw_instances(labels, 3, generator=generator)[1] for _ in range(4000)])
    for drawn, members in ((draws[:, 1], [0, 2, 3, 5]), (draws[:, 0], [1, 4])):
        shares = torch.stack([(drawn == i).double().mean(0) for i in members])
        error = (1 / len(members) / 4000) ** 0.5
        assert (shares - 1 / len(members)).abs().max() < 5 * error


def test_draws_follow_the_generator_or_the_global_one():
    labels = torch.arange(40) % 2
    first, again, other = (draw_instances(labels, 8, generator=torch.Generator().manual_seed(s))[1] for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    torch.manual_seed(1)
    assert torch.equal(first, draw_instances(labels, 8)[1])


def test_nothing_is_drawn_from_noise():
    clusters, members = draw_instances(torch.full((4,), -1), 3)
    assert clusters.shape == (0,) and members.shape == (0, 3)


@pytest.mark.parametrize("num_instances", [1, 3, 16])
def test_a_batch_draws_what_its_clusters_draw(num_instances):
    labels = torch.tensor([5] * 4 + [0] + [2] * 17 + [9] * 16)[torch.randperm(38)]
    clusters, expected = draw_instances(labels, num_instances, generator=torch.Generator().manual_seed(1))
    drawn = draw_batch_instances(labels, num_instances, generator=torch.Generator().manual_seed(1))
    assert torch.equal(drawn, expected[torch.searchsorted(clusters, labels)])
