"""Packaging of fastreid-ice.

fastreid itself is not in `install_requires`: 1.4.0, the version that this package extends, pins torch==1.13.1, so that
no installer finds a solution. Its dependencies are listed below instead, and it is installed without them:

    pip install --no-deps fastreid==1.4.0
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "fastreid_ice" / "__init__.py").read_text(), re.MULTILINE)[1]

EXPORT = [
    "onnx",  # fastreid-ice export: checks the graph
    "onnxruntime",  # and compares its features with torch's
]

SERVE = [
    "starlette",  # fastreid-ice serve and review: requests and answers
    "uvicorn",  # and the server
]

setup(
    name="fastreid-ice",
    version=VERSION,
    description="Unsupervised person re-identification for fast-reid: ICE and DCMIP from unlabelled crops",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    # A wheel has the configs inside the package, so that they are found wherever it is installed.
    packages=[*find_packages(include=["fastreid_ice", "fastreid_ice.*"]), "fastreid_ice.configs"],
    package_dir={"fastreid_ice.configs": "configs"},
    package_data={"fastreid_ice.reporting": ["templates/*"], "fastreid_ice.configs": ["*.yml", "*.pth"]},
    entry_points={"console_scripts": ["fastreid-ice=fastreid_ice.commands.__main__:main"]},
    python_requires=">=3.10,<3.14",
    install_requires=[
        "torch>=2.4",  # networks, losses, data loading
        "torchvision",  # image transforms, ours and fastreid's
        "timm>=1.0.31",  # backbones with weights that can be downloaded; ice_folder.yml starts from one
        "huggingface_hub",  # timm: downloads
        "numpy>=2",  # arrays of labels and cameras; fastreid
        "scipy",  # the sparse Jaccard graph; fastreid
        "numba",  # the loops of neighbours, Jaccard graph and DBSCAN, compiled
        "scikit-learn",  # pseudo-label quality; HDBSCAN; fastreid's evaluator
        # Charts, as SVG in the report and as PNG elsewhere; draws both without a browser, which others need.
        "matplotlib>=3.10",
        "Jinja2>=3.1",  # the report's page; torch
        "tqdm",  # progress on terminals; huggingface_hub
        "Pillow",  # reading crops and drawing the synthetic data; fastreid
        "tabulate",  # the closing table; fastreid's result tables
        # k-means, search in an index; fastreid's re-ranking. Runs without a GPU too; wheels for Linux x86-64 only.
        "faiss-gpu>=1.15",
        "pyarrow>=17",  # fastreid-ice search: features, paths and cameras as a Parquet file
        "pyyaml",  # fastreid: config files
        "yacs",  # fastreid: configs
        "tensorboard",  # fastreid: scalars
        "termcolor",  # fastreid: coloured log lines
    ],
    extras_require={
        "export": EXPORT,
        "serve": SERVE,
        # torch and faiss-gpu install CUDA libraries; those of older builds of torch are too old for faiss-gpu.
        "gpu": ["torch>=2.7"],
        "dev": [
            *EXPORT,
            *SERVE,
            "hypothesis",  # tests on drawn graphs and features
            "mypy",  # types
            "pytest",  # tests
            "pytest-xdist",  # tests in two processes
            "ruff",  # style
            "setuptools>=70.1",  # a test builds a wheel; older ones need the package wheel for that
        ],
        # `make docs`; not in "dev", since they bring some sixty packages that no test needs. Python 3.11.5 or later.
        "docs": [
            "mkdocs",  # the site
            "mkdocs-material",  # its theme
            "mkdocstrings-python",  # API pages from docstrings
            "nbconvert",  # runs docs/quickstart.ipynb and converts it to a page
            "ipykernel",  # the kernel that runs it
        ],
    },
    classifiers=[
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
)
