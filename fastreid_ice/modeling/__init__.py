"""The online and the momentum encoder as a fast-reid meta-architecture, and its head."""

from .head import ProxyHead
from .meta_arch import MomentumReID

__all__ = ["MomentumReID", "ProxyHead"]
