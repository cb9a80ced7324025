"""Loss terms: their additions to the pure functions, namely memory, weights, config keys, and the registry."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from torch import Tensor

from fastreid_ice import InputError
from fastreid_ice.core import Clusters, ImageTable, cross_camera_loss
from fastreid_ice.losses import (
    LOSS_REGISTRY,
    ClusterProxyLoss,
    CrossCameraLoss,
    HardInstanceLoss,
    LossTerm,
    SoftConsistencyLoss,
    Step,
    build_losses,
    required_views,
)
from golden import load_golden
from support import small_config


def make_clusters() -> Clusters:
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(60, 8, generator=generator))
    labels = torch.arange(60) % 7 - 1
    cameras = torch.randint(0, 3, (60,), generator=generator)
    return Clusters(labels, features, ImageTable(cameras))


def make_step(**changes: Tensor) -> Step:
    generator = torch.Generator().manual_seed(1)
    views = {view: torch.randn(12, 8, generator=generator) for view in ("online", "momentum", "momentum_weak")}
    labels, cameras = torch.arange(12) // 4, torch.arange(12) % 3
    return Step(**({"labels": labels, "cameras": cameras, "indices": torch.arange(12)} | views | changes))


@pytest.mark.parametrize("name", ["base", "singlecam", "onecamera", "hyper", "unitnorm"])
def test_total_equals_published_step(name: str) -> None:
    """The four terms together, with the published code's settings: loss and gradient of one of its steps."""
    golden = {key: torch.as_tensor(value) for key, value in load_golden(f"ice_losses_{name}").items()}
    terms = [
        ClusterProxyLoss(temperature=float(golden["tau_c"]), label_smoothing=float(golden["label_smoothing"])),
        CrossCameraLoss(
            temperature=float(golden["beta"]),
            num_negatives=int(golden["bg_knn"]),
            proxy_norm="coordinate",
            positives="all",
        ),
        HardInstanceLoss(temperature=float(golden["tau_v"])),
        SoftConsistencyLoss(temperature=float(golden["scale_kl"])),
    ]
    terms[0].remember("proxies", golden["centers"])
    terms[1].remember("proxies", F.normalize(golden["proxies"], dim=0))
    terms[1].remember("proxy_labels", golden["proxy_labels"])
    online = golden["f"].clone().requires_grad_()
    step = Step(
        golden["labels"], golden["cams"], torch.arange(len(online)), online, golden["m_view2"], golden["m_weak"]
    )
    total = sum(term(step) for term in terms)
    total.backward()
    torch.testing.assert_close(total.double(), golden["loss_total"], rtol=1e-5, atol=0)
    limit = 2e-5 * golden["grad_total"].abs().max().item()
    torch.testing.assert_close(online.grad, golden["grad_total"], rtol=0, atol=limit)


def test_memory_comes_from_clusters() -> None:
    clusters = make_clusters()
    loss = ClusterProxyLoss()
    loss.begin_epoch(clusters)
    for k in range(clusters.num_clusters):
        torch.testing.assert_close(loss.proxies[k], clusters.features[clusters.labels == k].mean(0))
    aware = CrossCameraLoss()
    aware.begin_epoch(clusters)
    torch.testing.assert_close(aware.proxies.norm(dim=1), torch.ones(len(aware.proxies)))
    by_coordinate = CrossCameraLoss(proxy_norm="coordinate")
    by_coordinate.begin_epoch(clusters)
    torch.testing.assert_close(by_coordinate.proxies.norm(dim=0), torch.ones(8))


def test_positives_exclude_own_camera_only_when_asked() -> None:
    clusters, step = make_clusters(), make_step()
    losses = {}
    for positives in ("all", "other_cameras"):
        term = CrossCameraLoss(positives=positives)
        term.begin_epoch(clusters)
        losses[positives] = term(step)
    plain = cross_camera_loss(step.online, step.labels, step.cameras, term.proxies, term.proxy_labels)
    torch.testing.assert_close(losses["all"], 0.5 * plain)
    assert not torch.isclose(losses["other_cameras"], losses["all"])


def test_build_reads_names_and_keys() -> None:
    cfg = small_config(**{"MODEL.LOSSES.NAME": ("SoftConsistencyLoss",), "MODEL.LOSSES.SOFT_CONSISTENCY.SCALE": 2.5})
    terms = build_losses(cfg)
    assert list(terms) == ["loss_soft_consistency"] and terms["loss_soft_consistency"].scale == 2.5
    assert required_views(cfg) == {"online", "momentum", "momentum_weak"}
    cfg.MODEL.LOSSES.NAME = ("ClusterProxyLoss",)
    assert required_views(cfg) == {"online"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("NAME", ("Nonsense",), "MODEL.LOSSES.NAME: 'Nonsense' is not registered; choose from .*ClusterProxyLoss"),
        ("NAME", (), "must list one or more"),
        ("NAME", ("HardInstanceLoss", "HardInstanceLoss"), "each once"),
        ("CROSS_CAMERA.PROXY_NORM", "column", "MODEL.LOSSES.CROSS_CAMERA: PROXY_NORM 'column' must be"),
        ("CROSS_CAMERA.POSITIVES", "some", "MODEL.LOSSES.CROSS_CAMERA: POSITIVES 'some' must be"),
    ],
)
def test_bad_config_is_named(key: str, value: object, message: str) -> None:
    cfg = small_config(**{f"MODEL.LOSSES.{key}": value})
    with pytest.raises(InputError, match=message):
        build_losses(cfg)


def test_unknown_key_of_a_loss_is_named() -> None:
    cfg = small_config()
    cfg.MODEL.LOSSES.HARD_INSTANCE.TEMPERATUR = 0.2
    with pytest.raises(InputError, match="MODEL.LOSSES.HARD_INSTANCE: .*temperatur"):
        build_losses(cfg)


@pytest.mark.parametrize("error", [TypeError, ValueError])
def test_an_error_in_a_loss_of_ones_own_stays_as_it_is(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    """With its traceback; a config key that the loss does not accept still gives one sentence."""

    class Faulty(LossTerm):
        views = frozenset({"online"})
        node = "FAULTY"

        def __init__(self, *, scale: float = 1.0) -> None:
            raise error("a slip of its author")

    monkeypatch.setitem(LOSS_REGISTRY._obj_map, "Faulty", Faulty)
    cfg = small_config(MODEL__LOSSES__NAME=("Faulty",))
    with pytest.raises(error, match="^a slip of its author$") as raised:
        build_losses(cfg)
    assert not isinstance(raised.value, InputError)
    cfg.MODEL.LOSSES.FAULTY = CfgNode({"SCALES": 2.0})
    with pytest.raises(InputError, match="^MODEL.LOSSES.FAULTY: .*scales.*"):
        build_losses(cfg)


def test_a_loss_of_ones_own_needs_no_change_elsewhere(tmp_path) -> None:
    """Registered here, configured by a file: name and keys reach it."""

    class Shrink(LossTerm):
        views = frozenset({"online"})
        node = "SHRINK"

        def __init__(self, *, scale: float = 1.0, power: float = 2.0) -> None:
            super().__init__(scale=scale)
            self.power = power

        def forward(self, step: Step) -> Tensor:
            return self.scale * step.online.norm(dim=1).pow(self.power).mean()

    LOSS_REGISTRY.register(Shrink)
    try:
        file = tmp_path / "shrink.yml"
        file.write_text('MODEL:\n  LOSSES:\n    NAME: ("Shrink",)\n    SHRINK: {POWER: 1.0, SCALE: 0.5}\n')
        cfg = small_config()
        cfg.merge_from_file(str(file))
        term = build_losses(cfg)["loss_shrink"]
        step = make_step()
        torch.testing.assert_close(term(step), 0.5 * step.online.norm(dim=1).mean())
    finally:
        del LOSS_REGISTRY._obj_map["Shrink"]
