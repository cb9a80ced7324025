"""fastreid-ice search as a user runs it: an index, queries, JSON and a page, or an error of one sentence."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from browser import CHROMIUM, Browser
from fastreid_ice.commands import search
from fastreid_ice.deploy.index import ImageIndex
from processes import run_command
from trained import make_trained

CAMERAS = ["DATASETS.FOLDER.CAMERAS", "_c([0-9])"]
EVIL = '"><img src=x onerror=window.injected=1>_c3.jpg'
PICTURES = """(([...pictures]) => [pictures.length, pictures.filter((i) => i.naturalWidth > 0 && i.alt).length])(
  document.querySelectorAll("img"))"""


@pytest.fixture(scope="module")
def place(datasets_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run ``run``, images in ``images``, queries of other people in ``queries``, and ``index``."""
    place = tmp_path_factory.mktemp("place")
    crops = next(datasets_root.rglob("bounding_box_train"))
    shutil.copytree(crops, place / "images")
    shutil.copytree(crops.parent / "query", place / "queries")
    make_trained(place / "run", place / "images")
    command = ["--run", "run", "--images", "images", "--index", "index", *CAMERAS]
    done = run_command("search", "index", *command, folder=place)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    assert done.stdout.endswith("54 images: 54 added, 0 changed, 0 kept, 0 dropped: index\n")
    return place


def run(monkeypatch: pytest.MonkeyPatch, place: Path, *arguments: str | Path) -> None:
    """The command in this process and in a folder."""
    monkeypatch.chdir(place)
    search.main([*map(str, arguments)])


def queries_of(place: Path) -> list[str]:
    return [f"queries/{name}" for name in sorted(os.listdir(place / "queries"))[:2]]


def test_table_json_and_page(place: Path, tmp_path: Path) -> None:
    outputs = ["--json", tmp_path / "found.json", "--page", tmp_path / "found.html"]
    options = ["--top-k", 4, "--other-cameras", "--threshold", "60%", *outputs]
    queries = queries_of(place)
    done = run_command("search", "query", "--index", "index", *queries, *options, folder=place)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    index = ImageIndex.read(place / "index")
    threshold = found["search"].pop("threshold")
    assert found["search"] == {
        "index": str(place / "index"),
        "images": 54,
        "run": str(place / "run"),
        "weights": str(place / "run" / "model_final.pth"),
        "fingerprint": index.origin.fingerprint,
        "top_k": 4,
        "other_cameras": True,
        "camera_norm": False,
        "reranked": False,
    }
    assert threshold == pytest.approx(index.origin.calibration["other cameras"][40], abs=1e-6)
    words = (
        f"60% of the pairs of images of two cameras in one cluster of the run have a cosine of at least {threshold:.3f}"
    )
    assert words in done.stdout and "an estimate from pseudo labels" in done.stdout
    assert [query["path"] for query in found["queries"]] == queries
    row_of = {path: row for row, path in enumerate(index.paths)}
    for query in found["queries"]:
        assert set(query) == {"path", "camera", "matches"} and query["camera"] == os.path.basename(query["path"])[6]
        assert 1 <= len(query["matches"]) <= 4
        similarities = []
        for rank, match in enumerate(query["matches"], 1):
            assert list(match) == ["rank", "path", "camera", "similarity", "distance"] and match["rank"] == rank
            assert match["camera"] == index.cameras[row_of[match["path"]]] != query["camera"]
            assert match["distance"] == pytest.approx(1 - match["similarity"], abs=1e-6)
            assert f"{rank}  {match['path']}  " in done.stdout
            similarities.append(match["similarity"])
        assert similarities == sorted(similarities, reverse=True) and similarities[-1] >= threshold
    page = (tmp_path / "found.html").read_text()
    assert page.count("<section>") == 2 and words in page and "<script" not in page
    assert not re.search(r'(?:src|href)="(?!data:)', page), "it loads nothing"


def test_an_image_of_the_index_is_not_its_own_result(place: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    image = f"images/{sorted(os.listdir(place / 'images'))[5]}"
    index = ImageIndex.read(place / "index")
    cosines = index.features @ index.features[5]
    cosines[5] = -2
    run(monkeypatch, place, "query", "--index", "index", image, "--json", tmp_path / "f.json")
    (found,) = json.loads((tmp_path / "f.json").read_text())["queries"]
    assert [match["path"] for match in found["matches"]] == [index.paths[row] for row in np.argsort(-cosines)[:10]]
    assert found["camera"] == index.cameras[5]
    run(monkeypatch, place, "query", "--index", "index", image, "--camera", "x", "--threshold", "1.0")
    assert capsys.readouterr().out.endswith(
        f"{image} (camera x)\nnothing was found\n\nThreshold: only results with a cosine of at least 1.\n"
    )


def test_reranking_changes_the_order_and_says_so(place: Path, tmp_path: Path, monkeypatch) -> None:
    outputs = ["--json", tmp_path / "f.json", "--page", tmp_path / "f.html"]
    run(monkeypatch, place, "query", "--index", "index", *queries_of(place), "--top-k", "54", "--rerank", *outputs)
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["search"]["reranked"] and found["search"]["threshold"] is None
    for query in found["queries"]:
        distances = [match["distance"] for match in query["matches"]]
        similarities = [match["similarity"] for match in query["matches"]]
        assert len(distances) == 54 and distances == sorted(distances)
        assert similarities != sorted(similarities, reverse=True)
    assert "ranked by re-ranked distance" in (tmp_path / "f.html").read_text()


def test_names_of_every_kind(place: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Names that would be markup, and names that are no text; a picture that is gone."""
    source = sorted((place / "images").iterdir())
    (tmp_path / "images").mkdir()
    for path, name in zip(source, ["plain_c1.jpg", EVIL, os.fsdecode(b"caf\xe9_c2.jpg"), "gone_c1.jpg"], strict=False):
        shutil.copy(path, tmp_path / "images" / name)
    shutil.copy(source[20], tmp_path / EVIL)
    run(monkeypatch, tmp_path, "index", "--run", place / "run", "--images", "images", "--index", "i", *CAMERAS)
    (tmp_path / "images" / "gone_c1.jpg").unlink()
    run(monkeypatch, tmp_path, "query", "--index", "i", EVIL, "--page", "f.html", "--json", "f.json")
    (found,) = json.loads(Path("f.json").read_text())["queries"]
    assert {os.path.basename(match["path"]) for match in found["matches"]} == {
        *os.listdir("images"),
        "gone_c1.jpg",
    }, "also names that are not UTF-8"
    assert "caf\ufffd_c2.jpg" in capsys.readouterr().out
    page = Path("f.html").read_text()
    assert EVIL not in page and "1 of the pictures are missing or cannot be read" in page and "<main>" in page
    if CHROMIUM:
        with Browser(tmp_path / "f.html", tmp_path / "browser") as browser:
            assert browser.ask(PICTURES) == [4, 4]
            assert browser.ask("!!window.injected") is False
            assert browser.ask("document.documentElement.scrollWidth <= innerWidth")
            heads = "[...document.querySelectorAll('thead th')].map((cell) => cell.scope + ' ' + cell.innerText)"
            names = ["rank", "picture", "file", "camera", "similarity", "distance"]
            assert browser.ask(heads) == [f"col {name}" for name in names]
            cells = "[...document.querySelectorAll('tbody tr')].map((row) => row.cells[2].innerText)"
            assert set(browser.ask(cells)) == {"plain_c1.jpg", EVIL, "caf\ufffd_c2.jpg", "gone_c1.jpg"}


def test_weights_that_have_changed_are_refused_until_the_index_is_made_again(
    place: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    shutil.copytree(place / "run", tmp_path / "run")
    make = ["index", "--run", "run", "--images", place / "images", "--index", "i", *CAMERAS]
    ask = ["query", "--index", "i", place / queries_of(place)[0]]
    run(monkeypatch, tmp_path, *make)
    checkpoint = torch.load("run/model_final.pth")
    checkpoint["epoch"] = 7
    torch.save(checkpoint, "run/model_final.pth")
    with pytest.raises(
        SystemExit, match="^error: the weights .*run/model_final.pth, or the run's settings, have changed"
    ):
        run(monkeypatch, tmp_path, *ask)
    os.rename("run", "moved")
    with pytest.raises(SystemExit, match="^error: the encoder of i is not as it was .*search index` with --run"):
        run(monkeypatch, tmp_path, *ask)
    make[2] = "moved"
    run(monkeypatch, tmp_path, *make)
    assert "The encoder is another one than that of the earlier index: all images were extracted again." in (
        capsys.readouterr().out
    )
    run(monkeypatch, tmp_path, *ask)


def index_with(place: Path, **changes: str | Path) -> list[str | Path]:
    options = {"run": place / "run", "images": place / "images", "index": "i"} | changes
    return ["index", *[part for name, value in options.items() for part in (f"--{name}", value)]]


def query_with(place: Path, *options: str | Path) -> list[str | Path]:
    return ["query", "--index", place / "index", place / queries_of(place)[0], *options]


def made(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


BAD = {
    "no run": (lambda place, here: index_with(place, run=here), "holds no config.yaml; it must be the OUTPUT_DIR of"),
    "no such weights": (lambda place, here: index_with(place, weights="no.pth"), "there are no weights .*no.pth$"),
    "other weights": (
        lambda place, here: index_with(place, weights=made(here / "w.pth", b"x")),
        "w.pth is not a checkpoint|w.pth",
    ),
    "no images": (lambda place, here: index_with(place, images="no"), "--images no: there is no such folder, and no"),
    "an empty folder": (lambda place, here: index_with(place, images=here), "holds no image .*; name another folder"),
    "no labels": (
        lambda place, here: index_with(place, images=made(here / "l.csv", b"a,b\n")),
        "l.csv is not a file of labels",
    ),
    "labels of nothing": (
        lambda place, here: index_with(place, images=made(here / "l.csv", b"path,camera,label,distance_to_centroid\n")),
        "--images .*l.csv names no image",
    ),
    "labels of what is gone": (
        lambda place, here: index_with(
            place, images=made(here / "l.csv", b"path,camera,label,distance_to_centroid\na.jpg,,0,\n")
        ),
        "none of the 1 images of .*l.csv exists, the first: '.*a.jpg'",
    ),
    "a broken image": (
        lambda place, here: index_with(place, images=made(here / "c" / "a.jpg", b"x").parent),
        "1 of 1 new images cannot be read, the first: .*a.jpg.*; remove them, or leave them out with DATALOADER.UNREAD",
    ),
    "other files": (
        lambda place, here: index_with(place, index=made(here / "taken" / "thesis.tex").parent),
        "--index .*taken holds other files, such as 'thesis.tex'; name a new folder",
    ),
    "an index that is a file": (lambda place, here: index_with(place, index=made(here / "f")), "--index .* is a file"),
    "no place": (lambda place, here: index_with(place, index="no/i"), "--index no/i: there is no folder .*no"),
    "a camera": (
        lambda place, here: [*index_with(place), "DATASETS.FOLDER.CAMERAS", "cam([0-9])"],
        r"CAMERAS 'cam\(\[0-9\]\)' finds no camera in 54 of 54 paths",
    ),
    "a key": (lambda place, here: [*index_with(place), "INPUT.SIZE", "1"], "there is no config key INPUT.SIZE"),
    "no index": (
        lambda place, here: ["query", "--index", here, "a.jpg"],
        "holds no index; `fastreid-ice search index`",
    ),
    "no query": (lambda place, here: query_with(place, "no.jpg"), "cannot read the image no.jpg: .*; name a picture"),
    "a query that is a text": (
        lambda place, here: query_with(place, made(here / "a.jpg", b"text")),
        "cannot read the image .*a.jpg: .*; name a picture",
    ),
    "a query that is a folder": (lambda place, here: query_with(place, here), "cannot read the image .*: it is not a"),
    "an unknown camera": (
        lambda place, here: query_with(
            place, shutil.copy(place / queries_of(place)[0], here / "a.jpg"), "--other-cameras"
        ),
        "--other-cameras: the camera of .*a.jpg is not known; name it by --camera",
    ),
    "no results": (lambda place, here: query_with(place, "--top-k", "0"), "--top-k 0 must be at least 1"),
    "a threshold": (lambda place, here: query_with(place, "--threshold", "2"), "--threshold '2' must be a cosine in"),
    "a share": (lambda place, here: query_with(place, "--threshold", "0%"), "--threshold '0%' must be a cosine in"),
    "a word": (lambda place, here: query_with(place, "--threshold", "high"), "--threshold 'high' must be a cosine in"),
    "no place for JSON": (
        lambda place, here: query_with(place, "--json", "no/f"),
        "--json no/f: its folder is missing",
    ),
    "a page that is a folder": (lambda place, here: query_with(place, "--page", here), "or it is a folder itself"),
}


@pytest.mark.parametrize("what", list(BAD))
def test_bad_input_is_one_sentence(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    arguments, message = BAD[what]
    monkeypatch.chdir(tmp_path)
    arguments = arguments(place, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit, match=message) as error:
        run(monkeypatch, tmp_path, *arguments)
    assert str(error.value.code).startswith("error: ") and "\n" not in error.value.code
    assert sorted(tmp_path.rglob("*")) == before, "nothing was written"


def test_options_that_are_missing(capsys) -> None:
    for arguments in ([], ["index"], ["query", "--index", "i"]):
        with pytest.raises(SystemExit, match="2"):
            search.main(arguments)
        assert "required" in capsys.readouterr().err
