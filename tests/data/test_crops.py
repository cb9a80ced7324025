"""Crops: resized as in fast-reid, once per image, and from a cache that processes share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from fastreid.data.data_utils import read_image
from PIL import Image
from torch.utils.data import DataLoader

from fastreid_ice import InputError
from fastreid_ice.data import CropCache, Crops, crops
from fastreid_ice.data.views import build_test_transform
from support import small_config

SIZE = (32, 16)


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Six files of different sizes."""
    rng = np.random.default_rng(0)
    paths = [str(tmp_path / f"{number}.png") for number in range(6)]
    for number, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 256, (40 + number, 20, 3), np.uint8)).save(path)
    return paths


def test_crops_are_those_of_fastreid(paths: list[str]) -> None:
    transform = build_test_transform(small_config(), "SIZE_TEST")
    images = Crops(paths, SIZE, {})[range(6)]["images"]
    assert images.dtype == torch.uint8
    assert torch.equal(images.float(), torch.stack([transform(read_image(path)) for path in paths]))


def test_columns_come_along(paths: list[str]) -> None:
    batch = Crops(paths, SIZE, {"targets": torch.arange(6) + 10})[[4, 1]]
    assert {name: batch[name].tolist() for name in ("targets", "indices", "readable")} == {
        "targets": [14, 11],
        "indices": [4, 1],
        "readable": [1, 1],
    }


def test_transforms_of_single_images_share_one_decoding(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    monkeypatch.setattr(crops, "read_image", lambda path: reads.append(path) or read_image(path))
    transform = build_test_transform(small_config(), "SIZE_TEST")
    batch = Crops(paths, SIZE, {}, transforms={"online": transform, "momentum": transform})[[0, 3]]
    assert reads == [paths[0], paths[3]]
    assert torch.equal(batch["online"], Crops(paths, SIZE, {})[[0, 3]]["images"].float())
    assert torch.equal(batch["online"], batch["momentum"]) and "images" not in batch


@pytest.mark.parametrize("cached", [False, True])
def test_an_image_that_recurs_is_decoded_once(paths: list[str], cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = Crops(paths, SIZE, {})[range(6)]["images"]
    reads = []
    monkeypatch.setattr(crops, "read_image", lambda path: reads.append(path) or read_image(path))
    batch = Crops(paths, SIZE, {}, cache=CropCache(6, SIZE) if cached else None)[[5, 2, 5, 5]]
    assert sorted(reads) == [paths[2], paths[5]]
    assert torch.equal(batch["images"], fresh[[5, 2, 5, 5]]) and batch["indices"].tolist() == [5, 2, 5, 5]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_cache_is_filled_once_for_all_processes(paths: list[str], num_workers: int) -> None:
    cache = CropCache(6, SIZE)
    fresh = Crops(paths, SIZE, {})[range(6)]["images"]
    first = Crops(paths, SIZE, {}, cache=cache)
    loader = DataLoader(
        first,
        sampler=[[0, 1], [2, 3, 1]],
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context="fork" if num_workers else None,
    )
    assert torch.equal(torch.cat([batch["images"] for batch in loader]), fresh[[0, 1, 2, 3, 1]])
    assert cache.filled.tolist() == [True] * 4 + [False] * 2
    for path in paths[:4]:
        Path(path).unlink()
    assert torch.equal(Crops(paths, SIZE, {}, cache=cache)[range(6)]["images"], fresh)
    assert cache.filled.all()


def test_unreadable_images_are_tried_again(paths: list[str]) -> None:
    cached = Crops(paths, SIZE, {}, cache=CropCache(6, SIZE), skip_unreadable=True)
    content = Path(paths[1]).read_bytes()
    Path(paths[1]).write_bytes(content[:-60])
    batch = cached[[0, 1]]
    assert batch["readable"].tolist() == [1, 0] and not batch["images"][1].any()
    Path(paths[1]).write_bytes(content)
    assert cached[[0, 1]]["readable"].tolist() == [1, 1]


def test_memory_is_taken_as_images_come() -> None:
    """A gigabyte costs nothing: only the pages of cached images are resident."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not Path("/proc/self/statm").exists():
        pytest.skip("the system does not report it")
    if crops.available_memory() < 2e9:
        pytest.skip("less than 2 GB are free")
    before = resident()
    cache = CropCache(10_000, (256, 128))
    assert not cache.images[5000].any()
    assert resident() - before < 50e6


def test_too_large_a_cache_is_refused() -> None:
    with pytest.raises(InputError, match=r"^DATALOADER.CACHE ram: 1000000000 crops of 256 x 128 take 98305.0 GB in 1 "):
        CropCache(10**9, (256, 128))
    fitting = int(0.4 * crops.available_memory() / (3 * 256 * 128))
    with pytest.raises(InputError, match=r"in 4 process\(es\).*; use DATALOADER.CACHE none"):
        CropCache(fitting, (256, 128), copies=4)


def test_a_container_has_its_limit(tmp_path: Path) -> None:
    """Files that the system caches while it has free memory do not count as used."""
    unlimited = crops.available_memory(tmp_path)
    (tmp_path / "memory.max").write_text("9000\n")
    (tmp_path / "memory.current").write_text("8000\n")
    (tmp_path / "memory.stat").write_text("anon 1000\nfile 7000\ninactive_file 4000\nactive_file 2500\nshmem 500\n")
    assert crops.available_memory(tmp_path) == 7500
    (tmp_path / "memory.max").write_text("max\n")
    assert crops.available_memory(tmp_path) > 0.5 * unlimited


@pytest.mark.parametrize("content", [b"", b"no image at all"])
def test_unreadable_file_is_named_or_skipped(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match="broken.jpg.*DATALOADER.UNREADABLE skip"):
        Crops([str(path)], SIZE, {})[[0]]
    batch = Crops([str(path)], SIZE, {}, skip_unreadable=True)[[0]]
    assert batch["readable"].item() == 0 and batch["images"].shape == (1, 3, 32, 16)


def test_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.new("RGB", (64, 128), (200, 30, 40)).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="cut.jpg"):
        Crops([str(path)], SIZE, {})[[0]]
