"""The losses against loops over images, their derivatives, and edge cases."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fastreid_ice.core import (
    cluster_proxy_loss,
    cross_camera_loss,
    discrepant_proxy_loss,
    hard_instance_loss,
    multi_instance_loss,
    soft_consistency_loss,
)


def test_without_foreign_proxies_and_with_one_positive_the_cross_camera_loss_is_zero():
    features = torch.randn(3, 4, requires_grad=True)
    zeros = torch.zeros(3, dtype=torch.int64)
    loss = cross_camera_loss(features, zeros, zeros, F.normalize(torch.randn(1, 4)), zeros[:1])
    loss.backward()
    assert loss.item() == 0
    assert features.grad.abs().max() == 0


def test_multi_instance_loss_equals_a_loop():
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    bank = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 3, 3, 1, 2, 0])
    losses = []
    for query, label in zip(F.normalize(queries), labels.tolist(), strict=True):
        logits = [
            min(query @ x for x in bank[k]) if k == label else max(query @ x for x in bank[k]) for k in range(len(bank))
        ]
        losses.append(F.cross_entropy(torch.stack(logits)[None] / 0.05, torch.tensor([label])))
    torch.testing.assert_close(multi_instance_loss(queries, bank, labels), sum(losses) / len(losses))


def test_multi_instance_loss_with_positives_of_the_batch_equals_a_loop():
    generator = torch.Generator().manual_seed(0)
    queries, positives = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    bank = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 3, 3, 1, 3, 0])
    losses = []
    for query, label in zip(F.normalize(queries), labels.tolist(), strict=True):
        logits = [max(query @ x for x in bank[k]) for k in range(len(bank))]
        logits[label] = min(query @ x for x in F.normalize(positives)[labels == label])
        losses.append(F.cross_entropy(torch.stack(logits)[None] / 0.05, torch.tensor([label])))
    loss = multi_instance_loss(queries, bank, labels, positives=positives)
    torch.testing.assert_close(loss, sum(losses) / len(losses))


def test_a_proxy_set_below_its_margin_gives_no_gradient():
    proxies = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    queries = (5 * torch.eye(3, dtype=torch.float64) + 0.1).requires_grad_()
    labels = torch.arange(3)
    plain = discrepant_proxy_loss(queries, proxies, labels, temperature=0.5)
    assert discrepant_proxy_loss(queries, proxies, labels, temperature=0.5, margins=(9, 9)).item() == 0
    halved = discrepant_proxy_loss(queries, proxies, labels, temperature=0.5, margins=(9, 0))
    torch.testing.assert_close(halved, plain / 2)
    gradients = [torch.autograd.grad(loss, queries)[0] for loss in (plain, halved)]
    torch.testing.assert_close(gradients[1], gradients[0] / 2)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0, 1, 1, 2, 2], [0, 1, 2, 3, 4, 5, 6, 7], [3, 3, 3, 1, 1, 1, 1, 0]])
def test_hard_instance_loss_with_unequal_classes_equals_a_loop(labels):
    generator = torch.Generator().manual_seed(1)
    queries, keys = torch.randn(2, 8, 5, generator=generator, dtype=torch.float64)
    similarities = F.normalize(queries) @ F.normalize(keys).T / 0.1
    losses = []
    for i, label in enumerate(labels):
        positive = min(similarities[i, j] for j in range(8) if labels[j] == label)
        negatives = sum(similarities[i, j].exp() for j in range(8) if labels[j] != label)
        losses.append(-(positive.exp() / (positive.exp() + negatives)).log())
    torch.testing.assert_close(hard_instance_loss(queries, keys, torch.tensor(labels)), sum(losses) / 8)


def test_hard_instance_loss_of_a_single_class_is_zero_and_back_propagates():
    queries = torch.randn(4, 3, requires_grad=True)
    loss = hard_instance_loss(queries, torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert queries.grad.abs().max() == 0


def test_soft_consistency_is_zero_for_equal_views_and_its_target_is_constant():
    queries = torch.randn(5, 3, dtype=torch.float64)
    keys, weak = queries.clone().requires_grad_(), queries.clone().requires_grad_()
    loss = soft_consistency_loss(queries, keys, weak)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    soft_consistency_loss(queries, keys, weak + torch.randn_like(weak)).backward()
    assert keys.grad.abs().max() > 0
    assert weak.grad is None


def example(dtype=torch.float64, device="cpu"):
    """One call of each loss: a function of only the features, and all its tensors."""
    generator = torch.Generator().manual_seed(2)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    features, keys, weak, proxies = draw(6, 5), draw(6, 5), draw(6, 5), draw(2, 4, 5)
    labels, cameras = torch.tensor([[0, 0, 3, 3, 3, 1], [0, 7, 7, 2, 0, 0]], device=device)
    proxy_labels, proxy_cameras = torch.tensor([[0, 1, 2, 3, 0, 3, 3], [0, 0, 0, 0, 2, 2, 7]], device=device)
    camera_proxies, bank = F.normalize(draw(7, 5)), draw(4, 3, 5)
    across = (labels, cameras, camera_proxies, proxy_labels)
    losses = {
        "cluster_proxy": lambda f: cluster_proxy_loss(f, proxies[0], labels),
        "cross_camera": lambda f: cross_camera_loss(f, *across, num_negatives=2),
        "other_cameras": lambda f: cross_camera_loss(f, *across, num_negatives=2, proxy_cameras=proxy_cameras),
        "hard_instance": lambda f: hard_instance_loss(f, keys, labels),
        "soft_consistency": lambda f: soft_consistency_loss(f, keys, weak),
        "discrepant_proxy": lambda f: discrepant_proxy_loss(f, F.normalize(proxies, dim=2), labels, margins=(0.2, 0)),
        "multi_instance": lambda f: multi_instance_loss(f, F.normalize(bank, dim=2), labels),
        "batch_positives": lambda f: multi_instance_loss(f, F.normalize(bank, dim=2), labels, positives=keys),
    }
    return features, losses, (features, keys, weak, proxies, labels, cameras, camera_proxies, bank)


LOSSES = list(example()[1])


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_derivative(name):
    features, losses, _ = example()
    assert torch.autograd.gradcheck(losses[name], features.requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_scalar_and_inputs_unchanged(name):
    features, losses, everything = example()
    before = [tensor.clone() for tensor in everything]
    loss = losses[name](features)
    assert loss.shape == ()
    assert loss > 0
    torch.testing.assert_close(list(everything), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_norm_of_the_features_matters_to_the_cluster_proxy_loss_only(name):
    features, losses, _ = example()
    same = losses[name](3 * features).item() == pytest.approx(losses[name](features).item(), rel=1e-9)
    assert same == (name != "cluster_proxy")


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_and_autocast(name, half):
    features, losses, _ = example(torch.float32)
    exact = losses[name](features).item()
    leaf = features.to(half).requires_grad_()
    loss = losses[name](leaf)
    loss.backward()
    assert leaf.grad.isfinite().all()
    with torch.autocast("cpu", dtype=half):
        mixed = losses[name](features)
    tolerance = 0.02 if half == torch.float16 else 0.1
    assert loss.item() == pytest.approx(exact, rel=tolerance, abs=tolerance)
    assert mixed.item() == pytest.approx(exact, rel=tolerance, abs=tolerance)


def test_defaults_are_those_of_the_papers():
    features, proxies, labels = torch.eye(2).double(), torch.eye(2), torch.tensor([0, 1])

    def loss(temperature):
        return math.log1p(math.exp(-1 / temperature))

    smoothed = loss(0.5) + 0.05 / 0.5
    assert cluster_proxy_loss(features, proxies, labels).item() == pytest.approx(smoothed)
    assert hard_instance_loss(features, features, labels).item() == pytest.approx(loss(0.1))
    assert discrepant_proxy_loss(features, proxies[None], labels).item() == pytest.approx(loss(0.05))
    assert multi_instance_loss(features, proxies[:, None], labels).item() == pytest.approx(loss(0.05))
    many = torch.zeros(60, 2)
    many[0, 0] = 0.1
    one = cross_camera_loss(features[:1], labels[:1], labels[:1], many, torch.arange(60)).item()
    assert one == pytest.approx(math.log1p(50 * math.exp(-0.1 / 0.07)))  # 50 of the 59 foreign proxies
    p, q = torch.tensor([[0.0, 2.5]]).double().softmax(1), torch.tensor([[2.5, 0.0]]).double().softmax(1)
    expected = (q * (q / p).log()).sum().item()
    assert soft_consistency_loss(features, features.flip(0), features).item() == pytest.approx(expected)


B, D = 4, 3
X, Y = torch.ones(B, D), torch.zeros(B, dtype=torch.int64)
P, L = torch.ones(5, D), torch.zeros(5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cluster_proxy_loss(X[:0], P, Y[:0]), r"features must be \(B, D\) with at least one row"),
        (lambda: cluster_proxy_loss(X, P[:, :2], Y), r"proxies must be \(C, D\) with D = 3"),
        (lambda: cluster_proxy_loss(X, P[:0], Y), r"proxies must be \(C, D\) with D = 3, not empty"),
        (lambda: cluster_proxy_loss(X, P, Y[:3]), r"labels must have shape \(4,\)"),
        (lambda: cluster_proxy_loss(X, P, Y, temperature=0), "temperature must be positive, got 0"),
        (lambda: cross_camera_loss(X, Y, Y[:2], P, L), r"cameras must have shape \(4,\)"),
        (lambda: cross_camera_loss(X, Y, Y, P, L[:2]), r"proxy_labels must have shape \(5,\)"),
        (lambda: cross_camera_loss(X, Y, Y, P, L, proxy_cameras=L[:2]), r"proxy_cameras must have shape \(5,\)"),
        (lambda: cross_camera_loss(X, Y, Y, P, L, num_negatives=0), "num_negatives must be at least 1"),
        (lambda: hard_instance_loss(X, X[:3], Y), r"keys must have the shape of queries, \(4, 3\), got \(3, 3\)"),
        (lambda: hard_instance_loss(X[:0], X[:0], Y[:0]), r"queries must be \(B, D\) with at least one row"),
        (lambda: soft_consistency_loss(X, X, X[:, :2]), "weak_keys must have the shape of queries"),
        (lambda: soft_consistency_loss(X, X, X, temperature=-1), "temperature must be positive, got -1"),
        (lambda: discrepant_proxy_loss(X, P, Y), r"proxies must be \(M, C, D\) with D = 3"),
        (lambda: discrepant_proxy_loss(X, P[None], Y, margins=(0, 0)), "margins must hold one value for each of the 1"),
        (lambda: multi_instance_loss(X, P, Y), r"bank must be \(C, K, D\) with D = 3"),
        (
            lambda: multi_instance_loss(X, P[None], Y, positives=P),
            r"positives must have the shape of queries, \(4, 3\)",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.gpu
@pytest.mark.parametrize("name", LOSSES)
def test_gpu_agrees_with_cpu(name):
    features, losses, _ = example()
    _, gpu_losses, _ = example(device="cuda")
    torch.testing.assert_close(gpu_losses[name](features.cuda()).cpu(), losses[name](features))
