"""The online and the momentum encoder as a fast-reid meta-architecture, with its head and backbones."""

from .backbone import NoWeights, build_fitting_backbone, build_timm_backbone, is_timm
from .head import ProxyHead
from .meta_arch import ENCODERS, MomentumReID, trains_without_labels

__all__ = [
    "ENCODERS",
    "MomentumReID",
    "NoWeights",
    "ProxyHead",
    "build_fitting_backbone",
    "build_timm_backbone",
    "is_timm",
    "trains_without_labels",
]
