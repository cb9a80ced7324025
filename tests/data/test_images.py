"""Images as users have them: every mode and format, rotated by EXIF, truncated, missing, with any name."""

from __future__ import annotations

import io
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastreid_ice import InputError
from fastreid_ice.data import CropCache, Crops, UnlabeledFolder, inspect_images
from fastreid_ice.data.crops import LabelledCrops
from fastreid_ice.reporting.sheets import thumbnail

# Four patches of whole JPEG blocks, which show a wrong rotation, a mirroring or swapped channels.
PATCHES = np.zeros((64, 32, 3), np.uint8)
PATCHES[:32, :16], PATCHES[:32, 16:], PATCHES[32:, :16], PATCHES[32:, 16:] = (
    (200, 30, 40),
    (30, 180, 60),
    (20, 50, 190),
    (120, 120, 120),
)
MIDDLES = (slice(None), slice(8, None, 16), slice(8, None, 16))  # away from the edges, which JPEG blurs


def as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def read(path: Path) -> Tensor:
    return Crops([str(path)], (64, 32), {})[[0]]["images"][0].float()


def picture(mode: str) -> Image.Image:
    image = Image.fromarray(PATCHES)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode == "P":
        return image.quantize(8)
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *(("RGB", kind) for kind in ("png", "jpg", "webp", "bmp", "gif", "tif")),
        *(("CMYK", kind) for kind in ("jpg", "tif")),
        *(("P", kind) for kind in ("png", "gif")),
        *(("RGBA", kind) for kind in ("png", "webp")),
        *((mode, kind) for mode in ("L", "LA", "I;16") for kind in ("png",)),
        *((mode, "tif") for mode in ("L", "I;16")),
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, kind: str) -> None:
    path = tmp_path / f"crop.{kind}"
    picture(mode).save(path)
    grey = mode in ("L", "LA", "I;16")
    expected = as_tensor(Image.fromarray(PATCHES).convert("L").convert("RGB") if grey else Image.fromarray(PATCHES))
    found = read(path)
    assert found.shape == (3, 64, 32)
    assert (found - expected)[MIDDLES].abs().max() <= (6 if kind in ("jpg", "webp") else 1)


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_exif_turns_the_image_upright(tmp_path: Path, tag: int, kind: str) -> None:
    """As in fast-reid. A camera held sideways writes rotated pixels and notes that in the tag."""
    stored = {
        1: lambda x: x,
        2: np.fliplr,
        3: lambda x: np.rot90(x, 2),
        4: np.flipud,
        5: lambda x: x.transpose(1, 0, 2),
        6: np.rot90,
        7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
        8: lambda x: np.rot90(x, -1),
    }[tag](PATCHES)
    exif = Image.Exif()
    exif[0x0112] = tag
    options = {"lossless": True} if kind == "webp" else {}
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"crop.{kind}", exif=exif, quality=95, **options)
    found = read(tmp_path / f"crop.{kind}")
    assert found.shape == (3, 64, 32)
    assert (found - as_tensor(Image.fromarray(PATCHES)))[MIDDLES].abs().max() <= 6


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "bmp", "gif", "tiff"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_named_or_read(tmp_path: Path, kind: str) -> None:
    """Truncated at any length, including 0, and with bytes overwritten at random: the only error is InputError."""
    whole = io.BytesIO()
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (48, 20, 3), np.uint8)).save(whole, kind)
    content = whole.getvalue()
    draws = random.Random(0)
    damaged = [content[: len(content) * part // 20] for part in range(20)]
    for _ in range(60):
        broken = bytearray(content)
        for _ in range(draws.choice([1, 3, 10])):
            broken[draws.randrange(draws.choice([60, len(content)]))] = draws.randrange(256)
        damaged.append(bytes(broken))
    path = tmp_path / f"crop.{kind}"
    named = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            assert read(path).shape[0] == 3
        except InputError as error:
            assert str(path) in str(error) and "DATALOADER.UNREADABLE skip" in str(error)
            named += 1
        batch = Crops([str(path)], (32, 16), {}, skip_unreadable=True)[[0]]
        assert batch["images"].shape == (1, 3, 32, 16)
    assert named >= 15


def test_an_image_of_too_many_pixels_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow refuses it before it fills the memory; it counts as unreadable, and no report shows it."""
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    for path, size in zip(paths, [(32, 64), (8, 8), (8, 9)], strict=True):
        Image.fromarray(PATCHES).resize(size).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    sentence = r"0.png: Image size \(2048 pixels\) exceeds"
    with pytest.raises(InputError, match=f"{sentence}.*; remove it, or skip .* DATALOADER.UNREADABLE skip"):
        read(Path(paths[0]))
    with pytest.raises(InputError, match="^1 of 3 training images cannot be read, the first: .*0.png"):
        inspect_images(paths, unreadable="error")
    inspect_images(paths, unreadable="skip")
    batch = Crops(paths, (32, 16), {}, skip_unreadable=True)[[0]]
    assert batch["readable"].item() == 0 and not batch["images"].any()
    assert thumbnail(paths[0]) is None and thumbnail(paths[1])


@pytest.fixture
def alarm() -> Iterator[None]:
    """Ends a test that waits for ever."""

    def end(number: int, frame: object) -> None:
        raise AssertionError("waited for 20 s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_a_pipe_and_a_link_to_itself_are_unreadable_images(tmp_path: Path, alarm) -> None:
    for number in range(2):
        Image.fromarray(PATCHES).save(tmp_path / f"{number}.png")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "round.jpg").symlink_to("round.jpg")
    (tmp_path / "round").symlink_to("round")
    paths = UnlabeledFolder(str(tmp_path)).paths
    assert [Path(path).name for path in paths] == ["0.png", "1.png", "pipe.jpg", "round.jpg"]
    for path in paths[2:]:
        assert thumbnail(path) is None
        with pytest.raises(InputError, match=f"{Path(path).name}.*DATALOADER.UNREADABLE skip"):
            read(Path(path))
    with pytest.raises(InputError, match="2 of 4 training images cannot be read, the first: .*pipe.jpg"):
        inspect_images(paths, unreadable="error")
    inspect_images(paths, unreadable="skip")
    batch = Crops(paths, (64, 32), {}, skip_unreadable=True)[range(4)]
    assert batch["readable"].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("name", ["two words.png", "é ü 人 🚶.png", "a'b\"c;$(d) %s {e}.png", "-n", "latin\udce9.png"])
def test_names(tmp_path: Path, name: str) -> None:
    """The last one contains a byte that is not UTF-8, as from old archives."""
    path = tmp_path / "a folder, ö" / name
    path.parent.mkdir()
    Image.fromarray(PATCHES).save(path, "png")
    assert torch.equal(read(path), as_tensor(Image.fromarray(PATCHES)))
    path.unlink()
    with pytest.raises(InputError) as error:
        read(path)
    assert name in str(error.value)


@pytest.mark.parametrize("cached", [False, True])
class TestLabelledCrops:
    @pytest.fixture
    def paths(self, tmp_path: Path) -> list[Path]:
        paths = [tmp_path / f"{number}.png" for number in range(5)]
        for path in paths:
            Image.fromarray(PATCHES).save(path)
        return paths

    def crops(self, paths: list[Path], cached: bool, *, skip: bool = True) -> LabelledCrops:
        columns = {"targets": torch.tensor([0, 1, 0, 1, 0]), "camids": torch.arange(5)}
        cache = CropCache(5, (64, 32)) if cached else None
        return LabelledCrops(list(map(str, paths)), (64, 32), columns, cache=cache, skip_unreadable=skip)

    def test_the_next_of_its_cluster_stands_in(self, paths: list[Path], cached: bool) -> None:
        paths[2].unlink()
        batch = self.crops(paths, cached)[range(5)]
        assert batch["indices"].tolist() == [0, 1, 4, 3, 4]
        assert batch["targets"].tolist() == [0, 1, 0, 1, 0]
        assert batch["camids"].tolist() == [0, 1, 4, 3, 4]
        assert batch["readable"].all()
        assert (batch["images"] == as_tensor(Image.fromarray(PATCHES))).all()
        paths[4].unlink()
        assert self.crops(paths, cached)[[2, 4]]["indices"].tolist() == [0, 0]

    def test_a_cluster_that_is_gone(self, paths: list[Path], cached: bool) -> None:
        for path in paths[1::2]:
            path.unlink()
        with pytest.raises(InputError, match=r"none of the 2 images of one cluster .*3.png; is their folder"):
            self.crops(paths, cached)[[3]]

    def test_without_skip_it_is_named(self, paths: list[Path], cached: bool) -> None:
        paths[2].unlink()
        with pytest.raises(InputError, match=r"2.png.*DATALOADER.UNREADABLE skip"):
            self.crops(paths, cached, skip=False)[[2]]
