"""Shared fixtures: small synthetic data, and a config that trains on it in seconds."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fastreid.config import CfgNode
from fastreid.utils.logger import setup_logger

from fastreid_ice.data import SyntheticPeople
from support import small_config

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
setup_logger()  # otherwise the first trainer would, while its test already reads the log


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests that need a GPU if there is none. Files with slow tests come first, so that processes that share the
    files end at about the same time."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What an inspection keeps in the user's cache goes to a temporary folder."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """Commands run within a test may raise the level of fast-reid's log; it is restored after the test."""
    logger = logging.getLogger("fastreid")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session")
def datasets_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of datasets that holds the small SyntheticPeople of ``small_config``."""
    root = tmp_path_factory.mktemp("datasets")
    SyntheticPeople(str(root), **SyntheticPeople.from_config(small_config()))
    return root


@pytest.fixture
def cfg(datasets_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CfgNode:
    """``small_config`` with its data; it writes to a folder in ``tmp_path``."""
    monkeypatch.setenv("FASTREID_DATASETS", str(datasets_root))
    return small_config(OUTPUT_DIR=str(tmp_path / "run"))
