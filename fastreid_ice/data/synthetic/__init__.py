"""Drawn people seen by drawn cameras, as datasets (registered with fast-reid)."""

from .dataset import SyntheticMarket, SyntheticPeople, SyntheticSource

__all__ = ["SyntheticMarket", "SyntheticPeople", "SyntheticSource"]
