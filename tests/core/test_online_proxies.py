"""O2CAP: its losses, its memory and its proxies against the reference, and the online loss against a loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastreid_ice.core import camera_centroids, cross_camera_loss, online_proxy_loss, update_each
from golden import load_golden

FILES = ["base", "gaps", "fewneg", "onecamera_clusters", "twocams", "hyper"]
# dtype, then tolerances: of losses relative, of gradients relative to the largest entry, of memories absolute
PRECISIONS = pytest.mark.parametrize(
    ("suffix", "dtype", "of_loss", "of_gradient", "of_memory"),
    [("", torch.float32, 1e-5, 2e-5, 2e-6), ("_f64", torch.float64, 1e-9, 1e-9, 1e-9)],
)


def tensors(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.as_tensor(value) for key, value in load_golden(f"o2cap_{name}").items()}


def steps(golden, suffix, dtype):
    """Features, labels, cameras, own proxies and the memory before of each stored iteration."""
    memories = [golden["proxies" + suffix], *golden["memory" + suffix]]
    rows = (golden["features"].to(dtype), golden["labels"], golden["cameras"], golden["own_proxy"])
    return zip(*rows, memories, strict=False)


def loss_and_gradient(loss_of, features):
    features = features.clone().requires_grad_()
    loss = loss_of(features)
    assert loss.dtype == features.dtype
    return loss.item(), torch.autograd.grad(loss, features)[0]


@PRECISIONS
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["offline", "online"])
def test_losses_equal_the_reference(kind, name, suffix, dtype, of_loss, of_gradient, of_memory):
    golden = tensors(name)
    constants = {"temperature": golden["temperature"].item(), "num_negatives": golden["num_negatives"].item()}
    if kind == "online":
        constants |= {"num_positives": golden["num_positives"].item(), "balance": golden["balance"].item()}
    shuffled = torch.randperm(len(golden["proxies"]), generator=torch.Generator().manual_seed(0))
    function = online_proxy_loss if kind == "online" else cross_camera_loss
    for t, (features, labels, cameras, _, memory) in enumerate(steps(golden, suffix, dtype)):
        for order in (torch.arange(len(memory)), shuffled):
            known = [memory[order], golden["proxy_labels"][order]]
            if kind == "online":
                known.append(golden["proxy_cameras"][order])
            loss, gradient = loss_and_gradient(
                lambda f, y=labels, c=cameras, p=known: function(f, y, c, *p, **constants), features
            )
            assert loss == pytest.approx(golden[f"{kind}_loss{suffix}"][t].item(), rel=of_loss)
            expected = golden[f"{kind}_grad{suffix}"][t]
            largest = expected.abs().max().item()
            torch.testing.assert_close(gradient, expected.to(dtype), rtol=0, atol=of_gradient * largest)


@PRECISIONS
@pytest.mark.parametrize("name", FILES)
def test_memory_equals_the_reference(name, suffix, dtype, of_loss, of_gradient, of_memory):
    golden = tensors(name)
    for t, (features, _, _, own, memory) in enumerate(steps(golden, suffix, dtype)):
        updated = update_each(memory, features, own, momentum=golden["momentum"].item())
        torch.testing.assert_close(updated, golden["memory" + suffix][t], rtol=0, atol=of_memory)


@pytest.mark.parametrize("name", FILES)
def test_proxies_equal_the_reference(name):
    golden = tensors(name)
    found = camera_centroids(*(golden[f"set_{key}"] for key in ("features", "labels", "cameras")))
    by_label = sorted(range(len(found[0])), key=lambda p: (found[1][p].item(), found[2][p].item()))
    expected = (golden["proxies"], golden["proxy_labels"], golden["proxy_cameras"])
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine[by_label], theirs, rtol=0, atol=1e-6)


def loop_online(features, labels, cameras, proxies, proxy_labels, proxy_cameras, tau, negatives, positives, balance):
    """The online loss, image by image, proxy by proxy."""
    by_camera: dict[int, list[torch.Tensor]] = {}
    for f, label, camera in zip(features, labels.tolist(), cameras.tolist(), strict=True):
        slots = range(len(proxies))
        own = next(p for p in slots if (proxy_labels[p], proxy_cameras[p]) == (label, camera))
        s = [F.normalize(f, dim=0) @ proxies[p] for p in slots]
        r = [balance * s[p].item() + (1 - balance) * (proxies[own] @ proxies[p]).item() for p in slots]
        tops = [
            max((p for p in slots if proxy_cameras[p] == c), key=lambda p: r[p]) for c in set(proxy_cameras.tolist())
        ]
        near = sorted(tops, key=lambda p: -r[p])[:positives]
        far = sorted((p for p in slots if p not in near), key=lambda p: -r[p])[:negatives]
        total = sum((s[p] / tau).exp() for p in near + far)
        loss = -sum(((s[p] / tau).exp() / total).log() for p in near) / len(near)
        by_camera.setdefault(camera, []).append(loss)
    return sum(sum(losses) / len(losses) for losses in by_camera.values())


def batch(seed=0, num_proxies=14, cameras=4):
    """8 images whose own proxies exist, and the proxies of 5 labels, in float64."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randperm(5 * cameras, generator=generator)[:num_proxies]
    proxy_labels, proxy_cameras = pairs % 5, 3 * (pairs // 5) - 1
    proxies = F.normalize(torch.randn(num_proxies, 6, generator=generator, dtype=torch.float64))
    own = torch.randint(0, num_proxies, (8,), generator=generator)
    features = proxies[own] + 0.5 * torch.randn(8, 6, generator=generator, dtype=torch.float64)
    return features, proxy_labels[own], proxy_cameras[own], proxies, proxy_labels, proxy_cameras


@pytest.mark.parametrize("balance", [0.0, 0.15, 1.0])
@pytest.mark.parametrize(("negatives", "positives"), [(50, 3), (4, 1), (3, 2), (9, 99)])
def test_online_loss_equals_a_loop(negatives, positives, balance):
    for seed in range(4):
        features, *known = batch(seed)
        inputs = [tensor.clone() for tensor in (features, *known)]
        expected = loss_and_gradient(
            lambda f, k=known: loop_online(f, *k, 0.07, negatives, positives, balance), features
        )
        constants = {"num_negatives": negatives, "num_positives": positives, "balance": balance}
        found = loss_and_gradient(lambda f, k=known, c=constants: online_proxy_loss(f, *k, **c), features)
        assert found[0] == pytest.approx(expected[0], rel=1e-9)
        torch.testing.assert_close(found[1], expected[1], rtol=1e-7, atol=1e-9)
        for before, after in zip(inputs, (features, *known), strict=True):
            torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_one_proxy_alone_gives_no_loss():
    features = torch.randn(3, 4, requires_grad=True)
    zeros = torch.zeros(3, dtype=torch.int64)
    loss = online_proxy_loss(features, zeros, zeros, F.normalize(torch.randn(1, 4)), zeros[:1], zeros[:1])
    loss.backward()
    assert loss.item() == 0
    assert features.grad.abs().max() == 0


def test_online_loss_has_the_right_derivative():
    features, *known = batch(seed=5)
    assert torch.autograd.gradcheck(lambda f: online_proxy_loss(f, *known), features.requires_grad_())


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("num_positives must be at least 1", {"num_positives": 0}),
        ("num_negatives must be at least 1", {"num_negatives": 0}),
        ("balance must lie in", {"balance": 1.5}),
        ("temperature must be positive", {"temperature": 0}),
        ("proxy_cameras must have shape", {"proxy_cameras": torch.zeros(3, dtype=torch.int64)}),
    ],
)
def test_says_what_is_wrong(message, change):
    names = ("features", "labels", "cameras", "proxies", "proxy_labels", "proxy_cameras")
    with pytest.raises(ValueError, match=message):
        online_proxy_loss(**dict(zip(names, batch(), strict=True)) | change)
