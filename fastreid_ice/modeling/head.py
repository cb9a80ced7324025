"""The head of an encoder that is trained against proxies, without a classifier."""

from __future__ import annotations

from fastreid.config import CfgNode, configurable
from fastreid.layers import get_norm, pooling
from fastreid.layers.weight_init import weights_init_kaiming
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from torch import Tensor, nn

from ..errors import InputError


@REID_HEADS_REGISTRY.register()
class ProxyHead(nn.Module):
    """Pooling, then an optional reduction and batch-norm neck; parameters are named as in fast-reid's EmbeddingHead.

    Args:
        feat_dim: channels of the backbone.
        embedding_dim: dimensions after a 1 x 1 convolution, or 0 for none.
        pool_type: a pooling of ``fastreid.layers.pooling``.
        with_bnneck: batch norm on the pooled features, with a fixed bias.
        norm_type: kind of batch norm.
    """

    @configurable
    def __init__(self, *, feat_dim: int, embedding_dim: int, pool_type: str, with_bnneck: bool, norm_type: str) -> None:
        super().__init__()
        if pool_type not in pooling.__all__:
            raise InputError(f"MODEL.HEADS.POOL_LAYER {pool_type!r} must be one of {', '.join(pooling.__all__)}")
        self.pool_layer = getattr(pooling, pool_type)()
        neck: list[nn.Module] = []
        if embedding_dim > 0:
            neck.append(nn.Conv2d(feat_dim, embedding_dim, 1, bias=False))
        if with_bnneck:
            neck.append(get_norm(norm_type, embedding_dim or feat_dim, bias_freeze=True))
        self.bottleneck = nn.Sequential(*neck).apply(weights_init_kaiming)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            "feat_dim": cfg.MODEL.BACKBONE.FEAT_DIM,
            "embedding_dim": cfg.MODEL.HEADS.EMBEDDING_DIM,
            "pool_type": cfg.MODEL.HEADS.POOL_LAYER,
            "with_bnneck": cfg.MODEL.HEADS.WITH_BNNECK,
            "norm_type": cfg.MODEL.HEADS.NORM,
        }

    def forward(self, features: Tensor, targets: Tensor | None = None) -> Tensor:
        """(B, feat_dim, H, W) feature maps to (B, D) features, not normalised. ``targets`` is not used."""
        return self.bottleneck(self.pool_layer(features))[..., 0, 0]
