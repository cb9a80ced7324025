"""Unsupervised person re-identification for fast-reid: ICE and DCMIP from unlabelled crops.

Importing the package makes fastreid 1.4.0 run on this Python and torch (``compat``), then registers the
meta-architecture, head, losses, clusterers, datasets and hooks under their names.
"""

from . import compat

compat.apply()

from . import clusterers, data, engine, losses, modeling  # noqa: E402
from .config import InputError, add_ice_config  # noqa: E402

__version__ = "0.1.0"
__all__ = ["InputError", "add_ice_config", "clusterers", "compat", "data", "engine", "losses", "modeling"]
