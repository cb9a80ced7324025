"""The convolutional stem of TransReID-SSL, against its description layer by layer and the published names."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from torch import Tensor

from fastreid_ice import InputError
from fastreid_ice.modeling import build_timm_backbone
from fastreid_ice.modeling.ics_stem import ConvolutionalPatches
from support import small_config

# Of patch_embed in the published network: clustercontrast/models/vision_transformer.py of damo-cv/TransReID-SSL.
PUBLISHED = {
    "conv.0.weight": (64, 3, 7, 7),
    "conv.3.weight": (64, 64, 3, 3),
    "conv.6.weight": (64, 64, 3, 3),
    "proj.weight": (384, 64, 8, 8),
    "proj.bias": (384,),
    **{f"conv.{i}.IN.{name}": (32,) for i in (1, 4) for name in ("weight", "bias")},
    **{f"conv.{i}.{name}": (32,) for i in ("1.BN", "4.BN") for name in ("weight", "bias", "running_mean")},
    **{f"conv.{i}.running_var": (32,) for i in ("1.BN", "4.BN")},
    **{f"conv.7.{name}": (64,) for name in ("weight", "bias", "running_mean", "running_var")},
    **{f"conv.{i}.num_batches_tracked": () for i in ("1.BN", "4.BN", "7")},
}


def config(height: int, width: int) -> CfgNode:
    return small_config(
        MODEL__BACKBONE__DEPTH="vit_small_patch16_ics",
        INPUT__SIZE_TRAIN=[height, width],
        INPUT__SIZE_TEST=[height, width],
    )


def test_names_and_shapes_are_the_published_ones() -> None:
    net = timm.create_model("vit_small_patch16_ics", img_size=(256, 128))
    assert {key: tuple(value.shape) for key, value in net.patch_embed.state_dict().items()} == PUBLISHED
    plain = timm.create_model("vit_small_patch16_224", img_size=(256, 128), num_classes=0)
    rest = {key: value.shape for key, value in net.state_dict().items() if "patch_embed" not in key}
    assert rest == {key: value.shape for key, value in plain.state_dict().items() if "patch_embed" not in key}


def layer_by_layer(weights: dict[str, Tensor], images: Tensor) -> Tensor:
    def half_and_half(maps: Tensor, name: str) -> Tensor:
        instance = F.instance_norm(maps[:, :32], None, None, weights[f"{name}.IN.weight"], weights[f"{name}.IN.bias"])
        return torch.cat([instance, batch(maps[:, 32:], f"{name}.BN")], 1)

    def batch(maps: Tensor, name: str) -> Tensor:
        return F.batch_norm(maps, None, None, weights[f"{name}.weight"], weights[f"{name}.bias"], training=True)

    maps = half_and_half(F.conv2d(images, weights["conv.0.weight"], stride=2, padding=3), "conv.1").relu()
    maps = half_and_half(F.conv2d(maps, weights["conv.3.weight"], padding=1), "conv.4").relu()
    maps = batch(F.conv2d(maps, weights["conv.6.weight"], padding=1), "conv.7").relu()
    maps = F.conv2d(maps, weights["proj.weight"], weights["proj.bias"], stride=8)
    return torch.stack([maps[:, :, row, column] for row in range(maps.shape[2]) for column in range(maps.shape[3])], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layer_by_layer(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    stem = ConvolutionalPatches(img_size=(64, 32), patch_size=16, embed_dim=384).to(dtype)
    for parameter in stem.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    images = torch.randn(4, 3, 64, 32, dtype=dtype)
    tokens = stem(images)
    assert tokens.shape == (4, 8, 384)
    torch.testing.assert_close(tokens, layer_by_layer(stem.state_dict(), images), rtol=1e-4, atol=1e-4)


def test_sizes_of_images() -> None:
    assert build_timm_backbone(config(80, 48)).net.patch_embed.grid_size == (5, 3)
    with pytest.raises(InputError, match=r"vit_small_patch16_ics takes no images of INPUT.SIZE_TRAIN \[63, 32\]"):
        build_timm_backbone(config(63, 32))
