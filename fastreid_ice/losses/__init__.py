"""Losses on pseudo labels: one module per method, each with its ``LossTerm`` classes in ``LOSS_REGISTRY``.

Every module of this folder is imported, so that a new method is one file.
"""

from importlib import import_module
from pkgutil import iter_modules

from .base import LOSS_REGISTRY, LossTerm, Step, build_losses, check_cameras, required_views
from .dcmip import UPDATE_REGISTRY, DiscrepantProxyLoss, MultiInstanceLoss
from .ice import ClusterProxyLoss, CrossCameraLoss, HardInstanceLoss, SoftConsistencyLoss
from .neighbors import NeighborLabelLoss
from .o2cap import OfflineOnlineProxyLoss

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "LOSS_REGISTRY",
    "UPDATE_REGISTRY",
    "ClusterProxyLoss",
    "CrossCameraLoss",
    "DiscrepantProxyLoss",
    "HardInstanceLoss",
    "LossTerm",
    "MultiInstanceLoss",
    "NeighborLabelLoss",
    "OfflineOnlineProxyLoss",
    "SoftConsistencyLoss",
    "Step",
    "build_losses",
    "check_cameras",
    "required_views",
]
