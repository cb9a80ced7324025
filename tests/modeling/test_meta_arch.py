"""MomentumReID: views, encoders, weights in and out."""

from __future__ import annotations

import copy
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.modeling.meta_arch import build_model
from torch import Tensor

from fastreid_ice import InputError
from fastreid_ice.core import Clusters, ImageTable
from fastreid_ice.modeling import MomentumReID
from support import osnet_config

BACKBONES = {
    "ResNet-18": ("build_resnet_backbone", "18x", 512, {}),
    "ResNet-50-IBN": ("build_resnet_backbone", "50x", 2048, {"MODEL.BACKBONE.WITH_IBN": True}),
    "OSNet": ("build_osnet_backbone", "x0_25", 128, {}),
    "ViT": ("build_vit_backbone", "small", 768, {"INPUT.SIZE_TRAIN": [64, 32], "INPUT.SIZE_TEST": [64, 32]}),
}

LOSSES = {
    "ClusterProxyLoss": "cluster_proxy",
    "CrossCameraLoss": "cross_camera",
    "HardInstanceLoss": "hard_instance",
    "SoftConsistencyLoss": "soft_consistency",
    "DiscrepantProxyLoss": "discrepant_proxy",
    "MultiInstanceLoss": "multi_instance",
}


def batch_for(cfg: CfgNode, images: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    height, width = cfg.INPUT.SIZE_TRAIN
    views = {
        view: 255 * torch.rand(images, 3, height, width, generator=generator)
        for view in ("online", "momentum", "momentum_weak")
    }
    ids = torch.arange(images)
    return views | {"targets": ids // 4, "camids": ids % 2, "indices": ids}


def clusters_for(model: MomentumReID, dim: int, images: int = 24) -> Clusters:
    features = F.normalize(torch.randn(images, dim, generator=torch.Generator().manual_seed(1)))
    ids = torch.arange(images)
    return Clusters(ids // 6, features, ImageTable(ids % 2))


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_one_step_on_any_backbone(backbone: str) -> None:
    """A real step: every loss finite, online weights move, momentum weights follow."""
    name, depth, dim, extra = BACKBONES[backbone]
    torch.manual_seed(0)
    cfg = osnet_config(
        **{"MODEL.BACKBONE.NAME": name, "MODEL.BACKBONE.DEPTH": depth, "MODEL.BACKBONE.FEAT_DIM": dim, **extra}
    )
    model = build_model(cfg).train()
    model.begin_epoch(clusters_for(model, dim))
    before = copy.deepcopy(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = model(batch_for(cfg))
    assert set(losses) == {"loss_cluster_proxy", "loss_cross_camera", "loss_hard_instance", "loss_soft_consistency"}
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    optimizer.step()
    model.after_step()
    for name, parameter in model.named_parameters():
        if name.startswith("momentum."):
            online = model.get_parameter(name.removeprefix("momentum."))
            torch.testing.assert_close(parameter, 0.9 * before.get_parameter(name) + 0.1 * online)
    moved = sum(not torch.equal(p, before.get_parameter(n)) for n, p in model.named_parameters() if p.requires_grad)
    assert moved > 0.9 * sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("names", [*combinations(LOSSES, 2), tuple(LOSSES)], ids="+".join)
def test_any_subset_of_the_losses_trains(names: tuple[str, ...]) -> None:
    """A step, and the losses of the next one with the updated weights and memories."""
    torch.manual_seed(0)
    cfg = osnet_config(**{"MODEL.LOSSES.NAME": names, "MODEL.LOSSES.MULTI_INSTANCE.NUM_INSTANCES": 3})
    model = build_model(cfg).train()
    model.begin_epoch(clusters_for(model, 128))
    batch = batch_for(cfg)
    before = {name: buffer.clone() for name, buffer in model.losses.named_buffers()}
    weight = model.backbone.conv1.conv.weight
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = model(batch)
    assert list(losses) == [f"loss_{LOSSES[name]}" for name in names]
    for loss in losses.values():
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        assert loss.isfinite() and gradient.isfinite().all() and gradient.any()
    sum(losses.values()).backward()
    optimizer.step()
    model.after_step()
    moves = {
        name.split(".")[0] for name, buffer in model.losses.named_buffers() if not torch.equal(buffer, before[name])
    }
    assert moves == {"loss_discrepant_proxy", "loss_multi_instance"} & set(losses)
    assert all(loss.isfinite() for loss in model(batch).values())


def test_only_the_views_that_are_asked_for_are_computed() -> None:
    cfg = osnet_config(**{"MODEL.LOSSES.NAME": ("ClusterProxyLoss",), "MODEL.MOMENTUM.ONLINE_VIEW": False})
    model = build_model(cfg).train()
    model.begin_epoch(clusters_for(model, 128))
    batch = batch_for(cfg)
    del batch["momentum"], batch["momentum_weak"]
    statistics = copy.deepcopy(model.momentum.state_dict())
    assert set(model(batch)) == {"loss_cluster_proxy"}
    assert all(torch.equal(value, statistics[name]) for name, value in model.momentum.state_dict().items())


def test_the_online_view_changes_nothing_but_the_momentum_statistics() -> None:
    """The third pass of the published ICE: its output is not used."""
    torch.manual_seed(0)
    two = build_model(osnet_config(**{"MODEL.MOMENTUM.ONLINE_VIEW": False})).train()
    three = build_model(osnet_config(**{"MODEL.MOMENTUM.ONLINE_VIEW": True})).train()
    three.load_state_dict(two.state_dict())
    batch = batch_for(osnet_config())
    for model in (two, three):
        model.begin_epoch(clusters_for(two, 128))
    losses = two(batch), three(batch)
    assert losses[0] == losses[1]
    counts = {
        model.momentum.get_buffer(name).item() - model.get_buffer(name.removeprefix("momentum.")).item()
        for model in (two, three)
        for name in ["backbone.conv1.bn.num_batches_tracked"]
    }
    assert counts == {1, 2}, "two or three momentum passes and one online pass"


def test_momentum_statistics_are_its_own_and_it_has_no_gradient() -> None:
    cfg = osnet_config()
    model = build_model(cfg).train()
    model.begin_epoch(clusters_for(model, 128))
    sum(model(batch_for(cfg)).values()).backward()
    assert not any(p.requires_grad or p.grad is not None for p in model.momentum.parameters())
    name = next(name for name, _ in model.backbone.named_buffers() if name.endswith("running_mean"))
    online, momentum = model.backbone.get_buffer(name), model.momentum["backbone"].get_buffer(name)
    assert not torch.equal(online, momentum), "the two encoders saw different views"


def test_images_are_left_as_they_are() -> None:
    """fast-reid normalises in place, so that a second pass over a batch normalises it twice."""
    model = build_model(osnet_config()).eval()
    images = 255 * torch.rand(3, 3, 32, 16)
    kept = images.clone()
    first = model({"images": images})
    assert torch.equal(images, kept)
    torch.testing.assert_close(model(images), first, msg="a bare tensor is the same batch")


@pytest.mark.parametrize("encoder", ["online", "momentum"])
def test_evaluation_runs_the_encoder_under_test(encoder: str) -> None:
    cfg = osnet_config(**{"TEST.ENCODER": encoder})
    model = build_model(cfg).eval()
    with torch.no_grad():
        for parameter in model.momentum.parameters():
            parameter.mul_(1.5)
    images = 255 * torch.rand(3, 3, 32, 16)
    torch.testing.assert_close(model(images), model.encode(images, encoder))
    assert not torch.allclose(model.encode(images, "online"), model.encode(images, "momentum"))


def test_plain_weights_start_both_encoders() -> None:
    cfg = osnet_config(**{"MODEL.META_ARCHITECTURE": "Baseline", "MODEL.HEADS.NAME": "EmbeddingHead"})
    cfg.MODEL.HEADS.NUM_CLASSES = 4
    weights = build_model(cfg).state_dict()
    model = build_model(osnet_config())
    assert model.load_state_dict(weights, strict=False).missing_keys == []
    for name, parameter in model.momentum.named_parameters():
        assert torch.equal(parameter, weights[name])


def test_own_weights_keep_the_encoders_apart() -> None:
    model = build_model(osnet_config())
    with torch.no_grad():
        for parameter in model.momentum.parameters():
            parameter.add_(1)
    other = build_model(osnet_config())
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_wrong_feature_dimension_is_named() -> None:
    with pytest.raises(InputError, match="MODEL.BACKBONE.FEAT_DIM 512 does not fit .* gives 128 channels"):
        build_model(osnet_config(**{"MODEL.BACKBONE.FEAT_DIM": 512}))


def test_pretrained_weights_that_do_not_fit_are_named(tmp_path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"conv1.weight": torch.zeros(7, 7)}, path)
    cfg = osnet_config(
        **{
            "MODEL.BACKBONE.NAME": "build_resnet_backbone",
            "MODEL.BACKBONE.DEPTH": "18x",
            "MODEL.BACKBONE.FEAT_DIM": 512,
            "MODEL.BACKBONE.PRETRAIN": True,
            "MODEL.BACKBONE.PRETRAIN_PATH": str(path),
        }
    )
    with pytest.raises(InputError, match="MODEL.BACKBONE.PRETRAIN_PATH .*weights.pth' does not fit"):
        build_model(cfg)
    torch.save({"model": {"conv1.weight": torch.zeros(64, 3, 7, 7)}}, path)
    with pytest.raises(InputError, match="MODEL.BACKBONE.PRETRAIN_PATH .*none of its entries"):
        build_model(cfg)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("INPUT.SIZE_TRAIN", [1, 1], r"^INPUT.SIZE_TRAIN \[1, 1\] is too small for build_osnet_backbone x0_25"),
        ("INPUT.SIZE_TEST", [1, 1], r"^INPUT.SIZE_TEST \[1, 1\] is too small for build_osnet_backbone x0_25"),
        ("MODEL.BACKBONE.DEPTH", "50x", "^MODEL.BACKBONE.DEPTH '50x' is none of build_osnet_backbone's"),
    ],
)
def test_a_size_or_depth_that_a_backbone_does_not_take(key: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        build_model(osnet_config(**{key: value}))
    assert "\n" not in str(error.value)
