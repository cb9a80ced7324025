"""Packaging of fastreid-ice.

fastreid itself is missing from `install_requires`: 1.4.0, the version this package extends, pins torch==1.13.1, so that
no installer finds a solution. What it needs is listed below instead, and it is installed without its dependencies:

    pip install --no-deps fastreid==1.4.0
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "fastreid_ice" / "__init__.py").read_text(), re.MULTILINE)[1]

setup(
    name="fastreid-ice",
    version=VERSION,
    description="Unsupervised person re-identification for fast-reid: ICE and DCMIP from unlabelled crops",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["fastreid_ice", "fastreid_ice.*"]),
    package_data={"fastreid_ice.engine": ["report.html"]},
    python_requires=">=3.10,<3.14",
    install_requires=[
        "torch>=2.4",  # networks, losses, data loading
        "torchvision",  # image transforms, ours and fastreid's
        "numpy>=2",  # arrays of labels and cameras; fastreid
        "scipy",  # the sparse Jaccard graph; fastreid
        "numba",  # the loops of neighbours, Jaccard graph and DBSCAN, compiled
        "scikit-learn",  # pseudo-label quality; HDBSCAN; fastreid's evaluator
        "Pillow",  # reading crops and drawing the embedded data; fastreid
        "tabulate",  # the closing table; fastreid's result tables
        # k-means, approximate neighbours; fastreid's re-ranking. Runs without a GPU too; wheels for Linux x86-64 only.
        "faiss-gpu>=1.15",
        "pyyaml",  # fastreid: config files
        "yacs",  # fastreid: configs
        "tensorboard",  # fastreid: scalars
        "termcolor",  # fastreid: coloured log lines
    ],
    extras_require={
        "dev": [
            "hypothesis",  # tests on drawn graphs and features
            "mypy",  # types
            "pytest",  # tests
            "ruff",  # style
        ]
    },
    classifiers=[
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
)
