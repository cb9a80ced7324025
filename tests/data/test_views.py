"""Views: one decoding per image, the transforms asked for, and what an unreadable file leads to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastreid_ice import InputError
from fastreid_ice.data import ImageViews, RandomGaussianBlur, build_strong_transform, build_weak_transform
from support import small_config


@pytest.fixture
def crop(tmp_path: Path) -> str:
    path = tmp_path / "0001_c1s1_000001_00.png"
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (48, 20, 3), np.uint8)).save(path)
    return str(path)


def test_views_differ_and_columns_come_along(crop: str) -> None:
    cfg = small_config()
    strong, weak = build_strong_transform(cfg), build_weak_transform(cfg)
    columns = {"targets": torch.tensor([7]), "camids": torch.tensor([2])}
    views = ImageViews([crop], {"online": strong, "momentum": strong, "momentum_weak": weak}, columns)
    torch.manual_seed(0)
    item = views[0]
    assert (item["targets"], item["camids"], item["indices"], item["readable"]) == (7, 2, 0, 1)
    assert item["online"].shape == item["momentum"].shape == item["momentum_weak"].shape == (3, 32, 16)
    assert not torch.equal(item["online"], item["momentum"]), "two strong views are drawn apart"
    assert torch.equal(item["momentum_weak"], views[0]["momentum_weak"]), "the weak view is the same each time"


def test_decoded_once_for_all_views(crop: str) -> None:
    seen = []
    views = ImageViews([crop], {"a": seen.append, "b": seen.append, "c": seen.append}, {})
    _ = views[0]
    assert len(seen) == 3 and seen[0] is seen[1] is seen[2]


def test_blur_is_part_of_the_strong_view_only_when_enabled() -> None:
    for enabled in (True, False):
        transform = build_strong_transform(small_config(**{"INPUT.BLUR.ENABLED": enabled}))
        assert any(isinstance(step, RandomGaussianBlur) for step in transform.transforms) == enabled


def test_blur_probability_and_strength(crop: str) -> None:
    image = Image.open(crop)
    torch.manual_seed(0)
    half = RandomGaussianBlur(0.5, (0.5, 2.0))
    kept = sum(half(image) is image for _ in range(400))
    assert 150 < kept < 250
    rough = np.asarray(image, float).std()
    assert np.asarray(RandomGaussianBlur(1.0, (2.0, 2.0))(image), float).std() < 0.5 * rough
    assert np.array_equal(RandomGaussianBlur(1.0, (0.0, 0.0))(image), image)


@pytest.mark.parametrize("content", [b"", b"no image at all"])
def test_unreadable_file_is_named_or_skipped(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    transforms = {"images": build_weak_transform(small_config())}
    with pytest.raises(InputError, match="broken.jpg.*DATALOADER.UNREADABLE skip"):
        ImageViews([str(path)], transforms, {})[0]
    item = ImageViews([str(path)], transforms, {}, skip_unreadable=True)[0]
    assert item["readable"] == 0 and item["images"].shape == (3, 32, 16)


def test_truncated_file_is_named(crop: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    Image.open(crop).resize((64, 128)).save(whole)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(InputError, match="cut.jpg"):
        ImageViews([str(cut)], {}, {})[0]
