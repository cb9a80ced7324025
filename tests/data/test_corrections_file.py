"""The file corrections.csv: what its rows mean, and the sentence about each thing that can be wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastreid_ice import InputError
from fastreid_ice.data import read_corrections, read_rows

IMAGES = [f"/crops/{name}.jpg" for name in "abcdefgh"]


def write(folder: Path, *rows: str, start: str = "image,relation,other") -> str:
    path = folder / "corrections.csv"
    path.write_text("\n".join((start, *rows)) + "\n", encoding="utf-8")
    return str(path)


def test_each_relation(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "/crops/a.jpg,same,/crops/c.jpg",
        "",
        " ,,",
        "/crops/d.jpg,different,/crops/a.jpg",
        "/crops/e.jpg,person,Anna  Müller ",
        "/crops/c.jpg, person ,Anna  Müller",
        "/crops/f.jpg,person,Ben",
        "/crops/g.jpg,nobody,",
        start="\ufeffimage,relation,other",
    )
    found = read_corrections(path, IMAGES)
    assert found.groups.tolist() == [0, 1, 0, 2, 0, 3, 4, 5]
    assert found.apart.tolist() == [[0, 2], [0, 3]]
    assert found.certain.tolist() == [True] + [False] * 5 and np.flatnonzero(found.nobody).tolist() == [6]
    rows = read_rows(path)
    assert [row.line for row in rows] == [2, 5, 6, 7, 8, 9] and rows[2][1:] == (IMAGES[4], "person", "Anna  Müller")


def test_the_last_row_about_a_pair_or_an_image_counts(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "/crops/a.jpg,different,/crops/b.jpg",
        "/crops/b.jpg,same,/crops/a.jpg",
        "/crops/a.jpg,nobody,",
        "/crops/a.jpg,person,Anna",
        "/crops/c.jpg,person,Anna",
        "/crops/c.jpg,nobody,",
        "/crops/d.jpg,same,/crops/d.jpg",
    )
    found = read_corrections(path, IMAGES)
    assert found.groups.tolist() == [0, 0, 1, 2, 3, 4, 5, 6] and len(found.apart) == 0
    assert np.flatnonzero(found.nobody).tolist() == [2]


def test_relative_paths_are_those_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, "x.jpg,same,crops/../y.jpg")
    assert read_corrections(path, [str(tmp_path / "x.jpg"), "y.jpg"]).groups.tolist() == [0, 0]
    assert read_corrections(write(tmp_path, "0,same,2"), ["0", "1", "2"]).groups.tolist() == [0, 1, 0]
    assert read_corrections(write(tmp_path), IMAGES).groups.tolist() == list(range(8))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["/crops/a.jpg,same,/crops/z.jpg"],
            "line 2: there is no image '/crops/z.jpg' among the 8; name images",
        ),
        (["/crops/a.jpg,same"], r"line 2 has 2 fields, not 3 \(image,relation,other\)"),
        (
            ["/crops/a.jpg,alike,/crops/b.jpg"],
            "line 2: the relation 'alike' is none of same, different, ",
        ),
        (["", "/crops/a.jpg,same,"], "line 3: same needs an image and an image as other"),
        (["/crops/a.jpg,person, "], "line 2: person needs an image and a name as other"),
        (["/crops/a.jpg,nobody,b"], "line 2: nobody needs an image and nothing as other"),
        (["/crops/a.jpg,different,/crops/a.jpg"], "line 2 .*: an image is not different from itself; remove the line"),
        (
            ["/crops/a.jpg,same,/crops/b.jpg", "/crops/h.jpg,same,/crops/g.jpg", "/crops/b.jpg,same,/crops/c.jpg"]
            + ["/crops/a.jpg,different,/crops/c.jpg"],
            "line 2 .'/crops/a.jpg' same '/crops/b.jpg'., line 4 .'/crops/b.jpg' same '/crops/c.jpg'. and line 5 "
            ".'/crops/a.jpg' different '/crops/c.jpg'. contradict each other; remove one of them",
        ),
        (
            ["/crops/a.jpg,person,Anna", "/crops/b.jpg,person,Ben", "/crops/b.jpg,same,/crops/a.jpg"],
            "line 2 .'/crops/a.jpg' person 'Anna'., line 3 .* and line 4 .* contradict each other",
        ),
        (
            ["/crops/a.jpg,person,Anna", "/crops/b.jpg,person,Anna", "/crops/b.jpg,different,/crops/a.jpg"],
            "line 2 .*, line 3 .* and line 4 .* contradict each other",
        ),
        (
            ["/crops/a.jpg,nobody,", "/crops/b.jpg,same,/crops/a.jpg"],
            "line 3 .* and line 2 .'/crops/a.jpg' nobody. contradict each other",
        ),
    ],
)
def test_what_is_wrong_is_named(rows: list[str], message: str, tmp_path: Path) -> None:
    path = write(tmp_path, *rows)
    with pytest.raises(InputError, match=message) as raised:
        read_corrections(path, IMAGES)
    assert str(raised.value).startswith(path) and "\n" not in str(raised.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="CORRECTIONS .*missing.csv: No such file or directory"):
        read_corrections(str(tmp_path / "missing.csv"), IMAGES)
    with pytest.raises(InputError, match="line 1 is 'path,camera': it must be 'image,relation,other'"):
        read_corrections(write(tmp_path, start="path,camera"), IMAGES)


def test_many_rows_take_linear_time(tmp_path: Path) -> None:
    """100,000 rows about 200,000 images: chains of ten, each end different from the next chain's."""
    images = [f"/crops/{number}.jpg" for number in range(200_000)]
    rows = [f"{images[i]},same,{images[i + 1]}" for i in range(100_000) if i % 10 < 9]
    rows += [f"{images[i]},different,{images[i + 10]}" for i in range(0, 99_990, 10)]
    found = read_corrections(write(tmp_path, *rows), images)
    assert found.groups.max() + 1 == 110_000 and found.certain.sum() == 10_000 and len(found.apart) == 9_999
