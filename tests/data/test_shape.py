"""The size of crops by the shape of the images of a folder."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from PIL import Image

from fastreid_ice import InputError
from fastreid_ice.data import fit_size, inspect_images
from fastreid_ice.data.shape import SAMPLE, fitted_size, median_aspect
from fastreid_ice.engine import build_config
from support import small_config

FOLDER = ["MODEL.BACKBONE.PRETRAIN", "False", "MODEL.DEVICE", "cpu", "DATASETS.ROOT"]


def draw(root: Path, size: tuple[int, int], number: int = 4, **options: object) -> Path:
    root.mkdir(exist_ok=True)
    for image in range(number):
        Image.new("RGB", size, (20 * image, 0, 0)).save(root / f"{image}.jpg", **options)
    return root


@pytest.mark.parametrize(
    ("aspect", "size"),
    [
        (0.5, (128, 64)),
        (0.41, (128, 64)),
        (0.62, (128, 64)),
        (1.0, (96, 96)),
        (1.5, (80, 112)),
        (0.3, (160, 48)),
        (100.0, (48, 176)),
    ],
)
def test_keeps_the_pixels_and_takes_the_shape(aspect: float, size: tuple[int, int]) -> None:
    assert fitted_size((128, 64), aspect) == size
    assert 0.7 < size[0] * size[1] / (128 * 64) < 1.3


def test_images_as_they_are_shown(tmp_path: Path) -> None:
    """Turned by their EXIF tag; what cannot be read does not count, and no pipe is waited for."""
    turned = Image.Exif()
    turned[0x0112] = 6
    draw(tmp_path / "turned", (90, 60), exif=turned)
    wide = draw(tmp_path / "wide", (90, 60), 1)
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    os.mkfifo(tmp_path / "pipe.jpg")
    names = [*(tmp_path / "turned").iterdir(), wide / "0.jpg", tmp_path / "broken.jpg", tmp_path / "pipe.jpg"]
    assert median_aspect([str(name) for name in names]) == pytest.approx(60 / 90)
    assert median_aspect([str(tmp_path / "broken.jpg")]) is None and median_aspect([]) is None
    assert median_aspect([str(wide / "0.jpg")] * (3 * SAMPLE)) == 1.5


def test_a_folder_of_square_crops(tmp_path: Path) -> None:
    """The whole config of a run holds what was chosen; a size that is named is used."""
    root = str(draw(tmp_path / "crops", (70, 72)))
    cfg, _ = build_config("ice_folder.yml", [*FOLDER, root])
    assert (cfg.INPUT.SIZE_TRAIN, cfg.INPUT.SIZE_TEST) == ([96, 96], [96, 96]) and not cfg.INPUT.AUTO_SIZE
    assert cfg.INPUT.PADDING.SIZE == 5
    cfg, _ = build_config("ice_folder_r50.yml", [*FOLDER, root, "INPUT.PADDING.SIZE", "20"])
    assert (cfg.INPUT.SIZE_TRAIN, cfg.INPUT.PADDING.SIZE) == ([176, 176], 19)
    cfg, _ = build_config("ice_folder.yml", [*FOLDER, root, "INPUT.SIZE_TRAIN", "[64, 32]"])
    assert (cfg.INPUT.SIZE_TRAIN, cfg.INPUT.SIZE_TEST) == ([64, 32], [128, 64])


def test_what_needs_no_change_is_left(tmp_path: Path) -> None:
    people = str(draw(tmp_path / "people", (60, 130)))
    cfg, _ = build_config("ice_folder.yml", [*FOLDER, people])
    assert (cfg.INPUT.SIZE_TRAIN, cfg.INPUT.PADDING.SIZE) == ([128, 64], 5) and not cfg.INPUT.AUTO_SIZE
    drawn = small_config(INPUT__AUTO_SIZE=True, DATASETS__ROOT=str(tmp_path / "nowhere"))
    fit_size(drawn)  # SyntheticPeople are not a user's own
    assert drawn.INPUT.SIZE_TRAIN == [32, 16]
    with pytest.raises(InputError, match="DATASETS.ROOT .*nowhere' is no folder"):
        build_config("ice_folder.yml", [*FOLDER, str(tmp_path / "nowhere")])


def test_a_resumed_run_keeps_its_size(tmp_path: Path) -> None:
    """Even if the images have changed."""
    options = [*FOLDER, str(draw(tmp_path / "crops", (70, 70))), "OUTPUT_DIR", str(tmp_path / "run")]
    cfg, _ = build_config("ice_folder.yml", options)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(cfg.dump())
    (tmp_path / "run" / "last_checkpoint").write_text("model_0001.pth")
    draw(tmp_path / "crops", (70, 140))
    resumed, _ = build_config("ice_folder.yml", [*options, "MODEL.FALLBACK.CONFIG", ""], resume=True)
    assert resumed.INPUT.SIZE_TRAIN == [96, 96] and not resumed.INPUT.AUTO_SIZE
    afresh, _ = build_config("ice_folder.yml", options)
    assert afresh.INPUT.SIZE_TRAIN == [128, 64]


def test_one_line_says_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [str(path) for path in draw(tmp_path, (72, 72)).iterdir()]
    with caplog.at_level(logging.INFO, logger="fastreid"):
        inspect_images(paths, unreadable="error", size=(96, 80))
    (said,) = [record.getMessage() for record in caplog.records if "INPUT.SIZE_TRAIN" in record.getMessage()]
    assert said.startswith("The median image is 1.00 times as wide as high; all become 80 x 96 (width x height): ")
