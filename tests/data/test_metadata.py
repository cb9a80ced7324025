"""Cameras, tracks and times of a folder, by names or by a table, and times from the names of known datasets."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from fastreid.config import CfgNode
from PIL import Image

from fastreid_ice import InputError
from fastreid_ice.data import build_dataset, build_test_loader, build_training_set
from support import small_config
from tiny_market import draw_tiny_market

PATTERN = r"^cam(?P<camera>[0-9]+)/(t(?P<track>[0-9]+)_)?(?P<time>[0-9.]+)\.jpg$"
NAMES = ["cam1/t7_10.jpg", "cam1/t7_11.jpg", "cam1/12.5.jpg", "cam2/t7_3.jpg"]
HEADER = "path,camera,track,time\n"
TABLE = f"{HEADER}cam1/t7_10.jpg,1,7,10\ncam1/t7_11.jpg,1,7,11\ncam1/12.5.jpg,1,,12.5\ncam2/t7_3.jpg,2,7,3\n"


def config(root: Path, *names: str, **keys: str) -> CfgNode:
    """Of a folder of equal images; keys of DATASETS.FOLDER."""
    for name in names or NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 32)).save(root / name)
    folder = {f"DATASETS.FOLDER.{key}": value for key, value in keys.items()}
    return small_config(DATASETS__NAMES=("UnlabeledFolder",), DATASETS__ROOT=str(root), **folder)


def known_of(cfg: CfgNode, *names: str) -> list[tuple[int, int, float]]:
    """Camera, track and time of the images with these names; a number for each camera and each track."""
    images = build_training_set(cfg)
    rows = zip(*(images.known.columns()[name].tolist() for name in ("cameras", "tracks", "times")), strict=True)
    found = dict(
        zip((Path(path).relative_to(cfg.DATASETS.ROOT).as_posix() for path in images.paths), rows, strict=True)
    )
    return [found[name] for name in names or NAMES]


def test_named_groups(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = config(tmp_path, METADATA=PATTERN)
    with caplog.at_level(logging.INFO, "fastreid"):
        assert known_of(cfg) == [(0, 0, 10), (0, 0, 11), (0, -1, 12.5), (1, 0, 3)]
    assert "2 tracks of 3 images; 4 images have a time" in caplog.text
    images = build_training_set(cfg)
    assert images.named_cameras == ["1", "1", "1", "2"] and images.known.times.dtype == torch.float64
    assert (images.identities == -1).all()


@pytest.mark.parametrize("header", ["path,camera,track,time", "time,path,track,camera"])
def test_a_table_tells_the_same(tmp_path: Path, header: str) -> None:
    cfg = config(tmp_path, METADATA="known.csv")
    order = [HEADER.strip().split(",").index(name) for name in header.split(",")]
    lines = [",".join(line.split(",")[i] for i in order) for line in TABLE.split()]
    (tmp_path / "known.csv").write_text("\n".join(lines))
    found = known_of(cfg)
    assert found == known_of(config(tmp_path, METADATA=PATTERN))
    # As a spreadsheet saves it, and without a line for the last image.
    (tmp_path / "known.csv").write_bytes("\r\n".join([*lines[:-1], "", ",,,", ""]).encode("utf-8-sig"))
    assert known_of(cfg) == [*found[:-1], (-1, -1, -1)]


def test_cameras_and_tracks_by_two_keys(tmp_path: Path) -> None:
    cfg = config(tmp_path, CAMERAS="folders", METADATA=r"t(?P<track>[0-9]+)_(?P<time>[0-9]+)|$")
    assert known_of(cfg) == [(0, 0, 10), (0, 0, 11), (0, -1, -1), (1, 0, 3)]


BAD = {
    "no expression": ("(?P<camera>", "is neither a .csv file nor a regular expression"),
    "no named group": ("cam([0-9])", "regular expression with some of the named groups"),
    "another group": ("(?P<camera>[0-9])(?P<person>.)", "and no others"),
    "no match": (r"t(?P<track>[0-9]+)_", "METADATA .* does not fit 1 of 4 paths, the first: 'cam1/12.5.jpg'"),
    "no time": (r"^cam1?(?P<time>..)", "METADATA: 'cam1/12.5.jpg': the time '/1' is not a number of at least 0"),
    "no file": ("none.csv", "METADATA '.*/none.csv': No such file"),
}
BAD_TABLES = {
    "empty": ("", "line 1 is ''"),
    "no path": ("camera,track\n1,2\n", "line 1 is 'camera,track': it must name the column path and some of camera"),
    "nothing but paths": ("path\n", "line 1 is 'path'"),
    "unknown column": ("path,camera,person\n", "line 1 is 'path,camera,person'"),
    "a column twice": ("path,camera,camera\n", "line 1 is"),
    "unknown path": (f"{TABLE}cam9/t.jpg,9,1,1\n", r"bad.csv', line 6: there is no image 'cam9/t.jpg'; paths are rel"),
    "doubled path": (f"{TABLE}cam1/./t7_10.jpg,1,7,11\n", "line 6 names 'cam1/t7_10.jpg' again, after line 2"),
    "missing column": (f"{TABLE}cam1/t7_10.jpg,1,7\n", r"line 6 has 3 fields, not 4 \(path,camera,track,time\)"),
    "no number": (TABLE.replace("12.5\n", "noon\n"), "line 4: the time 'noon' is not a number of at least 0"),
    "a time below 0": (TABLE.replace(",10", ",-10"), "line 2: the time '-10' is not a number of at least 0"),
    "infinity": (TABLE.replace(",10", ",inf"), "line 2: the time 'inf' is not a number of at least 0"),
    "no table": (f"path,camera\n{'x' * 200_000},1\n", "line 2: field larger than field limit"),
}


@pytest.mark.parametrize("what", [*BAD, *BAD_TABLES])
def test_bad_metadata_is_one_sentence(tmp_path: Path, what: str) -> None:
    rule, message = BAD[what] if what in BAD else ("bad.csv", BAD_TABLES[what][1])
    cfg = config(tmp_path, METADATA=rule)
    if what in BAD_TABLES:
        (tmp_path / "bad.csv").write_text(BAD_TABLES[what][0])
    with pytest.raises(InputError, match=message) as error:
        build_training_set(cfg)
    assert "\n" not in str(error.value) and "DATASETS.FOLDER.METADATA" in str(error.value)


def test_cameras_by_one_key_alone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="METADATA .* gives cameras, and so does DATASETS.FOLDER.CAMERAS 'folders'"):
        build_training_set(config(tmp_path, METADATA=PATTERN, CAMERAS="folders"))


@pytest.mark.parametrize("table", [False, True])
def test_query_and_gallery(tmp_path: Path, table: bool) -> None:
    """A table names them below the root; an expression is searched in the path below query and gallery."""
    names = ["a_c1.jpg", "b_c2.jpg", "query/anna/q_c1.jpg", "gallery/anna/g_c2.jpg", "gallery/anna/h_c1.jpg"]
    cfg = config(tmp_path, *names, METADATA="known.csv" if table else r"^(anna/)?._c(?P<camera>[0-9])")
    (tmp_path / "known.csv").write_text("\n".join(["path,camera", *(f"{name},{name[-5]}" for name in names)]))
    assert build_training_set(cfg).cameras.tolist() == [0, 1]
    data = build_dataset(cfg, "UnlabeledFolder")
    assert [item[1:] for item in (*data.query, *data.gallery)] == [(0, 0), (0, 1), (0, 0)]
    assert build_test_loader(cfg, "UnlabeledFolder")[1] == 1
    if table:
        (tmp_path / "known.csv").write_text("path,camera\na_c1.jpg,1\nquery/anna/q_c1.jpg,1\n")
        with pytest.raises(
            InputError, match="gives no camera for '.*gallery/anna/g_c2.jpg', and evaluation needs the cameras"
        ):
            build_dataset(cfg, "UnlabeledFolder")


def test_frame_numbers_of_market1501(tmp_path: Path) -> None:
    """Times order the frames of a camera, one sequence after the other; tracks are not known."""
    cfg = small_config(DATASETS__NAMES=("Market1501",), DATASETS__ROOT=str(draw_tiny_market(tmp_path)))
    images = build_training_set(cfg)
    frames = [Path(path).name.split("_")[2] for path in images.paths]
    assert images.known.times.tolist() == [10**8 + int(frame) for frame in frames] and len(set(frames)) == 2
    assert (images.known.tracks == -1).all()


def test_datasets_together(tmp_path: Path) -> None:
    cfg = config(draw_tiny_market(tmp_path), METADATA=r"^cam.*/(t(?P<track>[0-9]+)|)[^/]*$|^Market")
    cfg.DATASETS.NAMES = ("Market1501", "UnlabeledFolder")
    known = build_training_set(cfg).known
    market, folder = known[:16], known[-4:]
    assert (market.tracks == -1).all() and (market.times >= 0).all() and (market.identities >= 0).all()
    assert sorted(folder.tracks.tolist()) == [-1, 0, 0, 0] and (folder.times == -1).all()
