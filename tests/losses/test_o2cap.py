"""O2CAP's loss with its memory: against the stored run of the published code, loss, gradient and memory together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastreid_ice import InputError
from fastreid_ice.core import Clusters, ImageTable
from fastreid_ice.losses import OfflineOnlineProxyLoss, Step
from golden import load_golden

FILES = ["base", "gaps", "fewneg", "onecamera_clusters", "twocams", "hyper"]


def begin(golden: dict[str, Tensor], **options) -> OfflineOnlineProxyLoss:
    names = ("temperature", "momentum", "num_negatives", "num_positives", "balance")
    loss = OfflineOnlineProxyLoss(**{name: golden[name].item() for name in names}, **options)
    loss.begin_epoch(Clusters(golden["set_labels"], golden["set_features"], ImageTable(golden["set_cameras"])))
    return loss


def steps(golden: dict[str, Tensor]) -> list[Step]:
    return [
        Step(labels, cameras, torch.arange(len(labels)), features.clone().requires_grad_())
        for features, labels, cameras in zip(golden["features"], golden["labels"], golden["cameras"], strict=True)
    ]


@pytest.mark.parametrize("name", FILES)
def test_a_run_equals_the_reference(name: str) -> None:
    golden = {key: torch.as_tensor(value) for key, value in load_golden(f"o2cap_{name}").items()}
    loss = begin(golden)
    by_label = sorted(
        range(len(loss.proxies)), key=lambda p: (loss.proxy_labels[p].item(), loss.proxy_cameras[p].item())
    )
    for t, step in enumerate(steps(golden)):
        value = loss(step)
        assert value.item() == pytest.approx(golden["total_loss"][t].item(), rel=1e-5)
        (gradient,) = torch.autograd.grad(value, step.online)
        expected = golden["online_grad"][t] + golden["offline_grad"][t]
        torch.testing.assert_close(gradient, expected, rtol=0, atol=2e-5 * expected.abs().max().item())
        loss.after_step(step)
        torch.testing.assert_close(loss.proxies[by_label], golden["memory"][t], rtol=0, atol=2e-6)
    assert not loss.state_dict()


@pytest.mark.parametrize("part", ["offline", "online"])
def test_each_part_alone(part: str) -> None:
    golden = {key: torch.as_tensor(value) for key, value in load_golden("o2cap_base").items()}
    loss = begin(golden, parts=(part,), scale=3.0)
    assert loss(steps(golden)[0]).item() == pytest.approx(3 * golden[f"{part}_loss"][0].item(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ()}, r"PARTS \(\) must name one or both of offline, online"),
        ({"parts": ("both",)}, "PARTS .* must name one or both of offline, online"),
        ({"num_positives": 0}, "NUM_NEGATIVES 50 and NUM_POSITIVES 0 must be at least 1"),
        ({"balance": 1.5}, "BALANCE 1.5 and MOMENTUM 0.2 must lie in"),
    ],
)
def test_bad_values_are_named(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        OfflineOnlineProxyLoss(**options)
