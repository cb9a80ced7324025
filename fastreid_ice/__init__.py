"""Unsupervised person re-identification for fast-reid: ICE and DCMIP from unlabelled crops.

Importing the package makes fastreid 1.4.0 run on this Python and torch (``compat``), then registers the
meta-architecture, head, losses, clusterers, datasets and hooks under their names. Where fastreid is not installed
``fastreid_ice.core`` works alone.
"""

import warnings
from importlib.util import find_spec

__version__ = "0.1.0"

if find_spec("fastreid") is None:
    warnings.warn(
        "fastreid is not installed, so that of fastreid_ice only core can be used; for the rest run "
        "`pip install --no-deps fastreid==1.4.0`",
        stacklevel=2,
    )
else:
    from . import compat

    compat.apply()

    from . import clusterers, data, engine, losses, modeling
    from .config import add_ice_config
    from .errors import InputError

    __all__ = ["InputError", "add_ice_config", "clusterers", "compat", "data", "engine", "losses", "modeling"]
