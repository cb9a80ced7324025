"""The ViT-S with a convolutional stem of TransReID-SSL, as a model of timm.

Luo et al., "Self-Supervised Pre-Training for Transformer-Based Person Re-Identification", 2021 (arXiv 2111.12084), call
the stem ICS: convolutions with IBN in place of one large convolution for each patch. Names of parameters and buffers
are those of the published weights.
"""

from __future__ import annotations

from typing import Any

from fastreid.layers.batch_norm import IBN
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import PatchEmbed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

CHANNELS = 64

# Published as a file only, for MODEL.BACKBONE.PRETRAIN_PATH; pretrained on images of 256 x 128.
default_cfgs = generate_default_cfgs(
    {
        "vit_small_patch16_ics": {
            "input_size": (3, 256, 128),
            "fixed_input_size": True,
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "num_classes": 0,
            "first_conv": "patch_embed.conv.0",
            "classifier": "head",
        }
    }
)


class ConvolutionalPatches(PatchEmbed):
    """Three convolutions, the first of them with stride 2, then a projection of each patch.

    Args:
        patch_size: height and width of a patch in the image, an even number.
        embed_dim: channels of the output.
        in_chans: channels of the images.
        arguments: further ones of timm's ``PatchEmbed``.
    """

    def __init__(self, *, patch_size: int, embed_dim: int, in_chans: int = 3, **arguments: Any) -> None:
        super().__init__(patch_size=patch_size, embed_dim=embed_dim, **arguments)
        self.conv = nn.Sequential(
            nn.Conv2d(in_chans, CHANNELS, 7, stride=2, padding=3, bias=False),
            IBN(CHANNELS, "BN"),
            nn.ReLU(inplace=True),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False),
            IBN(CHANNELS, "BN"),
            nn.ReLU(inplace=True),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False),
            nn.BatchNorm2d(CHANNELS),
            nn.ReLU(inplace=True),
        )
        self.proj = nn.Conv2d(CHANNELS, embed_dim, patch_size // 2, stride=patch_size // 2)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images to (B, H / patch_size * W / patch_size, embed_dim) tokens."""
        return self.proj(self.conv(images)).flatten(2).transpose(1, 2)


@register_model
def vit_small_patch16_ics(pretrained: bool = False, **arguments: Any) -> VisionTransformer:
    """timm's vit_small_patch16_224 with ``ConvolutionalPatches``."""
    size = {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6, "embed_layer": ConvolutionalPatches}
    return build_model_with_cfg(
        VisionTransformer,
        "vit_small_patch16_ics",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        **(size | arguments),
    )
