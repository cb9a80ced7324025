"""From a config to datasets: order, cameras, and folders that are not as expected."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastreid.config import CfgNode
from PIL import Image

from fastreid_ice import InputError
from fastreid_ice.data import build_dataset, build_test_loader, build_training_set
from support import small_config
from tiny_market import FOLDER, draw_tiny_market


def write_market(root: Path, names: dict[str, list[str]]) -> None:
    """Writes a Market-1501 folder: part -> file names."""
    for part in ("bounding_box_train", "query", "bounding_box_test"):
        folder = root / "Market-1501-v15.09.15" / part
        folder.mkdir(parents=True)
        for name in names.get(part, []):
            Image.new("RGB", (16, 32)).save(folder / name)


def test_training_set_is_sorted_and_numbered(cfg: CfgNode) -> None:
    images = build_training_set(cfg)
    assert len(images) == 6 * 3 * 3
    assert images.paths == sorted(images.paths)
    assert images.cameras.unique().tolist() == [0, 1, 2]
    assert images.identities.bincount().tolist() == [9] * 6


def test_camera_gaps_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_market(tmp_path, {"bounding_box_train": [f"0001_c{camera}s1_000001_00.jpg" for camera in (2, 5, 6)]})
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    assert build_training_set(small_config(**{"DATASETS.NAMES": ("Market1501",)})).cameras.tolist() == [0, 1, 2]


def test_unknown_dataset_lists_the_known(cfg: CfgNode) -> None:
    cfg.DATASETS.NAMES = ("Market",)
    with pytest.raises(InputError, match="'Market' is not registered; choose from .*Market1501"):
        build_training_set(cfg)


def test_missing_folder_is_named(cfg: CfgNode) -> None:
    cfg.DATASETS.NAMES = ("Market1501",)
    with pytest.raises(InputError, match="dataset Market1501: .*not found.*FASTREID_DATASETS"):
        build_training_set(cfg)


def test_empty_parts_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_market(tmp_path, {"query": ["0001_c1s1_000001_00.jpg"]})
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    cfg = small_config(**{"DATASETS.NAMES": ("Market1501",)})
    with pytest.raises(InputError, match="dataset Market1501: its train part has no image .*FASTREID_DATASETS"):
        build_training_set(cfg)
    with pytest.raises(InputError, match="dataset Market1501: its gallery part has no image"):
        build_test_loader(cfg, "Market1501")


def test_strange_file_names_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_market(tmp_path, {"bounding_box_train": ["holiday.jpg"]})
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    with pytest.raises(InputError, match="dataset Market1501: .*holiday.jpg"):
        build_training_set(small_config(**{"DATASETS.NAMES": ("Market1501",)}))


class TestMisplacedDatasets:
    """Datasets that exist, but not where fast-reid expects them."""

    def sentence(self, root: Path, name: str = "Market1501") -> str:
        with pytest.raises(InputError) as error:
            build_dataset(small_config(DATASETS__ROOT=str(root)), name)
        assert "\n" not in str(error.value)
        return str(error.value)

    def test_nested_twice(self, tmp_path: Path) -> None:
        draw_tiny_market(tmp_path / "away")
        (tmp_path / FOLDER).mkdir()
        (tmp_path / "away" / FOLDER).rename(tmp_path / FOLDER / FOLDER)
        inner = str(tmp_path / FOLDER / FOLDER)
        assert f"; it is in {inner!r}: move what is there into {str(tmp_path / FOLDER)!r} (" in self.sentence(tmp_path)

    def test_zipped(self, tmp_path: Path) -> None:
        (tmp_path / f"{FOLDER}.zip").touch()
        assert f"; unpack '{tmp_path / FOLDER}.zip' first (" in self.sentence(tmp_path)
        (tmp_path / FOLDER).mkdir()
        (tmp_path / f"{FOLDER}.zip").rename(tmp_path / FOLDER / "market.zip")
        assert f"; unpack '{tmp_path / FOLDER}/market.zip' first (" in self.sentence(tmp_path)

    def test_nothing_there(self, tmp_path: Path) -> None:
        assert self.sentence(tmp_path).startswith(f'dataset Market1501: "{tmp_path}/bounding_box_train" is not found (')
        assert self.sentence(tmp_path, "MSMT17").startswith("dataset MSMT17: Dataset folder not found (")
