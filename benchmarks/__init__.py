"""The benchmarks, one module per question; `fastreid-ice bench` runs them."""

import fastreid_ice  # noqa: F401  before fastreid, which cannot be imported without it
