"""Labels as files and links: the command as a user runs it, which changes no original."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from fastreid_ice.commands import label
from fastreid_ice.reporting import PseudoLabels
from fastreid_ice.reporting.links import plan_links
from support import small_config

NAMES = ["a/1.jpg", "b/1.jpg", "c/with space.jpg", "c/人.jpg", "c/" + "x" * 251 + ".jpg", "d/2.jpg", "d/3.jpg", "a/4"]
LABELS = [3, 3, 3, 0, 0, -1, -1, 12345]
CAMERAS = ["2", "2", "10", "front/door", "", "", "2", "2"]
DISTANCES = [0.25, 0.25, 0.125, 0.5, 0.0, np.nan, 0.75, 0.0]
LINKS = {
    "cluster_00000/camfront-door_0.5000_人.jpg": "c/人.jpg",
    "cluster_00000/0.0000_" + "x" * 244 + ".jpg": NAMES[4],
    "cluster_00003/cam02_0.2500_1.jpg": "a/1.jpg",
    "cluster_00003/cam02_0.2500_1_2.jpg": "b/1.jpg",
    "cluster_00003/cam10_0.1250_with space.jpg": "c/with space.jpg",
    "cluster_12345/cam02_0.0000_4": "a/4",
    "noise/2.jpg": "d/2.jpg",
    "noise/cam02_0.7500_3.jpg": "d/3.jpg",
}


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """A file of labels, with the images that it names."""
    for name in NAMES:
        (tmp_path / "crops" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "crops" / name).write_text(name)
    paths = [str(tmp_path / "crops" / name) for name in NAMES]
    PseudoLabels(paths, CAMERAS, np.array(LABELS), np.array(DISTANCES)).write(tmp_path / "labels.csv")
    return tmp_path / "labels.csv"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", ["label.py", *map(str, arguments)])
        label.main()


def to_folder(folder: Path) -> tuple[str | Path, ...]:
    return "--format", "folder", "--output", folder


def refusal(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *arguments)
    assert "\n" not in str(stopped.value)
    return str(stopped.value)


def snapshot(folder: Path) -> dict[str, tuple]:
    """Everything visible of the files in a folder: kind, number of links, times and content."""
    return {
        str(path): (os.lstat(path).st_nlink, os.lstat(path).st_mtime_ns, path.is_symlink() or path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def test_links_by_cluster(labels: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    before, folder = snapshot(tmp_path), tmp_path / "links"
    run(monkeypatch, labels, *to_folder(folder))
    said = capsys.readouterr().out
    assert snapshot(tmp_path) == before and not folder.exists(), "a dry run creates nothing"
    assert f"Would write {folder}: 3 folders of clusters and one of noise, 8 links" in said
    assert said.endswith("\n  ...\nNothing was created; --write creates it.\n") and said.count(" -> ") == 5

    run(monkeypatch, labels, *to_folder(folder), "--write")
    made = {str(path.relative_to(folder)): os.readlink(path) for path in folder.rglob("*") if not path.is_dir()}
    assert made == {name: str(tmp_path / "crops" / target) for name, target in LINKS.items()}
    assert all((folder / name).read_text() == target for name, target in LINKS.items())
    assert all(path.is_symlink() for path in folder.glob("*/*"))
    after = snapshot(tmp_path)
    assert {path: after[path] for path in before} == before, "the originals, and the file of labels"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crops", "labels.csv", "links"]


def test_a_sorted_file(labels: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    output = tmp_path / "sorted.csv"
    run(monkeypatch, labels, "--output", output)
    assert f"Would write {output}: 8 images" in capsys.readouterr().out and not output.exists()
    run(monkeypatch, labels, "--output", output, "--write")
    written = PseudoLabels.read(output)
    assert written.labels.tolist() == [0, 0, 3, 3, 3, 12345, -1, -1]
    assert written.distances[:6].tolist() == [0, 0.5, 0.125, 0.25, 0.25, 0]
    assert [Path(path).name for path in written.paths][5:7] == ["4", "3.jpg"]


def test_labels_that_keep_corrections(labels: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Two clusters are joined, noise gets a cluster, the image further from its centroid leaves, nobody is noise."""
    crops, file, output = tmp_path / "crops", tmp_path / "corrections.csv", tmp_path / "corrected.csv"
    rows = [("c/with space.jpg", "same", NAMES[4]), ("c/with space.jpg", "different", "b/1.jpg"), ("a/4", "nobody", "")]
    rows += [("d/2.jpg", "person", "Anna"), ("d/3.jpg", "person", "Anna")]
    text = [
        f"{crops / one},{relation},{crops / other if relation in ('same', 'different') else other}"
        for one, relation, other in rows
    ]
    file.write_text("\n".join(("image,relation,other", *text)), encoding="utf-8")
    run(monkeypatch, labels, "--corrections", file, "--output", output, "--write")
    assert (
        f"{file}: 2 people were in several clusters or in noise, and are now in one; 1 clusters held two people; 1 "
        f"images show nobody\nWrote {output}: 8 images\n"
    ) == capsys.readouterr().out
    written = PseudoLabels.read(output)
    found = {
        str(Path(path).relative_to(crops)): label for path, label in zip(written.paths, written.labels, strict=True)
    }
    joined = {found[name] for name in ("a/1.jpg", "c/with space.jpg", "c/人.jpg", NAMES[4])}
    assert len(joined) == 1 and found["d/2.jpg"] == found["d/3.jpg"] >= 0 and found["d/2.jpg"] not in joined
    assert found["b/1.jpg"] == found["a/4"] == -1 and np.isnan(written.distances).all()

    file.write_text(f"image,relation,other\n{crops / 'd/2.jpg'},nobody,\n")
    run(monkeypatch, labels, "--corrections", file, "--output", tmp_path / "same.csv", "--write")
    same = PseudoLabels.read(tmp_path / "same.csv")
    assert same.labels.tolist() == [0, 0, 1, 1, 1, 2, -1, -1], "without gaps"
    assert same.distances[:6].tolist() == [0, 0.5, 0.125, 0.25, 0.25, 0], "unchanged clusters keep theirs"
    file.write_text("image,relation,other\nx.jpg,nobody,\n")
    message = refusal(monkeypatch, labels, "--corrections", file, "--output", tmp_path / "no.csv", "--write")
    assert "corrections.csv, line 2: there is no image 'x.jpg' among the 8" in message
    assert not (tmp_path / "no.csv").exists()


class TestOtherPrograms:
    @pytest.fixture
    def crops(self, labels: Path, tmp_path: Path) -> Path:
        """The images as real ones, each of another size."""
        for number, name in enumerate(NAMES):
            image = Image.new("RGB", (10 + number, 20 + number))
            image.save(tmp_path / "crops" / name, "PNG")
        return tmp_path / "crops"

    def test_coco(self, crops: Path, labels: Path, tmp_path: Path, monkeypatch, capsys) -> None:
        run(monkeypatch, labels, "--format", "coco", "--output", tmp_path / "coco.json", "--write")
        assert f"8 images, with file names relative to {crops}\n" in capsys.readouterr().out
        found = json.loads((tmp_path / "coco.json").read_text(encoding="utf-8"))
        assert [category["name"] for category in found["categories"]] == ["person"] and found["info"]["root"] == str(
            crops
        )
        images = {image["id"]: image for image in found["images"]}
        assert sorted(image["file_name"] for image in images.values()) == sorted(NAMES)
        for box in found["annotations"]:
            image = images[box["image_id"]]
            number = NAMES.index(image["file_name"])
            assert (image["width"], image["height"]) == (10 + number, 20 + number)
            assert box["bbox"] == [0, 0, 10 + number, 20 + number] and box["area"] == (10 + number) * (20 + number)
            expected = {"identity": LABELS[number], "camera": CAMERAS[number], "distance": DISTANCES[number]}
            absent = {"identity": -1, "camera": ""}
            expected = {key: value for key, value in expected.items() if value != absent.get(key) and value == value}
            assert box["attributes"] == expected
            assert box.get("track_id", -1) == LABELS[number] and box["category_id"] == 1
        assert len({box["id"] for box in found["annotations"]}) == len(images) == 8
        (crops / NAMES[0]).write_text("no image")
        message = refusal(monkeypatch, labels, "--format", "coco", "--output", tmp_path / "new.json", "--write")
        assert f"cannot read the image {crops / NAMES[0]}" in message and not (tmp_path / "new.json").exists()

    def test_fiftyone(self, crops: Path, labels: Path, tmp_path: Path, monkeypatch) -> None:
        run(monkeypatch, labels, "--format", "fiftyone", "--output", tmp_path / "set", "--write")
        found = json.loads((tmp_path / "set" / "labels.json").read_text(encoding="utf-8"))
        assert found["classes"] == ["0", "3", "12345"] and len(found["labels"]) == 8
        for path, image in found["labels"].items():
            number = NAMES.index(str(Path(path).relative_to(crops)))
            assert (image is None) == (LABELS[number] < 0)
            if image:
                assert image["label"] == str(LABELS[number])
                assert image["attributes"].get("camera", "") == CAMERAS[number]
                assert image["attributes"]["distance"] == DISTANCES[number]


class TestTracks:
    """Two cameras of a tracker that numbers people anew in each."""

    CROPS: ClassVar = {  # camera, track, frame -> cluster
        ("1", 4, 10): 0,
        ("1", 4, 11): 0,
        ("1", 4, 12): 1,
        ("1", 9, 12): 0,  # in the same frame as track 4, which has more crops in cluster 0
        ("2", 1, 50): 0,
        ("2", 2, 50): 1,
        ("2", 3, 90): -1,
    }
    FILES: ClassVar = {
        "1": "10,4,5,6,7.5,8,0.9,-1,-1,-1\n11,4,5,6,7,8,1\n12,4.0,5,6,7,8,1\n12,9,1,2,3,4,1\n",
        "2": "50,1,5,6,7,8,1\n\n50,2,5,6,7,8,1\n90,3,5,6,7,8,1\n91,7,5,6,7,8,1\n",
    }

    @pytest.fixture
    def traced(self, tmp_path: Path) -> Path:
        """A run with labels, and the files of the tracker."""
        paths = []
        for camera, track, frame in self.CROPS:
            path = tmp_path / "crops" / f"cam{camera}" / f"track{track:03d}_{frame}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 16)).save(path)
            paths.append(str(path))
        labels = np.array([*self.CROPS.values()])
        output = tmp_path / "run"
        output.mkdir()
        PseudoLabels(paths, [""] * len(paths), labels, np.zeros(len(paths))).write(output / "labels.csv")
        rule = "cam(?P<camera>[0-9]+)/track(?P<track>[0-9]+)_(?P<time>[0-9]+)"
        cfg = small_config(
            OUTPUT_DIR=str(output),
            DATASETS__NAMES=("UnlabeledFolder",),
            DATASETS__TESTS=(),
            DATASETS__ROOT=str(tmp_path / "crops"),
            DATASETS__FOLDER__METADATA=rule,
        )
        (output / "config.yaml").write_text(cfg.dump())
        (tmp_path / "tracker").mkdir()
        for camera, text in self.FILES.items():
            (tmp_path / "tracker" / f"{camera}.txt").write_text(text)
        return output

    def test_one_identity_across_cameras(self, traced: Path, tmp_path: Path, monkeypatch, capsys) -> None:
        arguments = ["--run", traced, "--format", "mot", "--tracks", tmp_path / "tracker", "--output", tmp_path / "all"]
        run(monkeypatch, *arguments)
        assert not (tmp_path / "all").exists()
        assert (
            "2 cameras, 6 tracks of 5 identities: 3 tracks have that of a cluster, 2 are in none, 1 share a frame"
            in capsys.readouterr().out
        )
        run(monkeypatch, *arguments, "--write")
        assert (tmp_path / "all" / "1.txt").read_text() == (
            "10,1,5,6,7.5,8,0.9,-1,-1,-1\n11,1,5,6,7,8,1\n12,1,5,6,7,8,1\n12,3,1,2,3,4,1\n"
        )
        assert (tmp_path / "all" / "2.txt").read_text() == (
            "50,1,5,6,7,8,1\n50,2,5,6,7,8,1\n90,4,5,6,7,8,1\n91,5,5,6,7,8,1\n"
        )

    def test_bad_input(self, traced: Path, tmp_path: Path, monkeypatch, capsys) -> None:
        tracker, output = tmp_path / "tracker", ("--output", tmp_path / "all", "--write")
        mot = ("--run", traced, "--format", "mot", "--tracks")
        assert "no file CAMERA.txt there" in refusal(monkeypatch, *mot, tmp_path, *output)
        (tracker / "1.txt").rename(tracker / "one.txt")
        (tracker / "2.txt").rename(tracker / "two.txt")
        assert "crops have track '4' of camera '1' and the files have track '4' of camera 'one'" in refusal(
            monkeypatch, *mot, tracker, *output
        )
        (tracker / "two.txt").write_text("50,1,5,6,7,8\n50,one,5,6,7,8\n")
        assert "two.txt, line 2 is not frame,id,left,top,width,height" in refusal(monkeypatch, *mot, tracker, *output)
        (tracker / "two.txt").write_text("")
        (tracker / "one.txt").write_text("")
        assert "the files there are empty" in refusal(monkeypatch, *mot, tracker, *output)
        (tracker / "two.txt").write_text(self.FILES["2"])
        config = traced / "config.yaml"
        config.write_text(config.read_text().replace("track(?P<track>[0-9]+)", "track[0-9]+"))
        assert "finds no camera and track of an image; train with DATASETS.FOLDER.METADATA" in refusal(
            monkeypatch, *mot, tracker, *output
        )
        for arguments, message in (
            (["--run", traced, "--format", "mot", *output], "--format mot needs --run OUTPUT_DIR and --tracks FOLDER"),
            (["--run", traced, "--tracks", tracker, *output], "--tracks is for --format mot"),
        ):
            refusal(monkeypatch, *arguments)
            assert message in capsys.readouterr().err
        assert not (tmp_path / "all").exists()


def test_a_run_and_images_that_are_gone(labels: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """For a run with stages, the labels of the last one that has clustered; the folder may exist if it is empty."""
    cfg = small_config(OUTPUT_DIR="elsewhere")
    cfg.STAGES = ({"SOLVER": {"MAX_EPOCH": 1}},) * 3
    output = tmp_path / "run"
    for stage in ("stage1", "stage2"):
        (output / stage).mkdir(parents=True)
    (output / "config.yaml").write_text(cfg.dump())
    assert "has not clustered yet" in refusal(monkeypatch, output, *to_folder(tmp_path / "links"))
    (output / "stage1" / "labels.csv").write_text("path,camera,label,distance_to_centroid\n")
    labels.rename(output / "stage2" / "labels.csv")
    (tmp_path / "crops" / "a" / "1.jpg").unlink()
    (tmp_path / "links").mkdir()
    run(monkeypatch, output, *to_folder(tmp_path / "links"), "--write")
    assert "1 images no longer exist and are left out, the first: " in capsys.readouterr().out
    assert len(list((tmp_path / "links").glob("*/*"))) == 7
    assert os.readlink(tmp_path / "links" / "cluster_00003" / "cam02_0.2500_1.jpg").endswith("b/1.jpg")


def test_nothing_is_overwritten_or_half_made(labels: Path, tmp_path: Path, monkeypatch) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").touch()
    (tmp_path / "broken").symlink_to("nowhere")
    before = snapshot(tmp_path)
    cases = [
        (to_folder(full), "full exists; name another, or remove it first"),
        (to_folder(labels), "labels.csv exists"),
        (["--output", labels], "labels.csv exists"),
        (to_folder(tmp_path / "no" / "where"), "there is no folder"),
        (to_folder(tmp_path / "broken"), "--output .*broken"),
    ]
    for arguments, message in cases:
        assert re.search(message, refusal(monkeypatch, labels, *arguments, "--write"))
        assert snapshot(tmp_path) == before

    def full_disk(self: Path, target: str) -> None:
        made.append(self)
        if len(made) == 5:
            raise OSError(28, "No space left on device")
        os.symlink(target, self)

    made: list[Path] = []
    with monkeypatch.context() as patched:
        patched.setattr(Path, "symlink_to", full_disk)
        message = refusal(patched, labels, *to_folder(tmp_path / "links"), "--write")
    assert "No space left on device" in message and len(made) == 5
    assert snapshot(tmp_path) == before and not list(tmp_path.glob(".*")), "the four links are removed as well"


def test_bad_input_is_one_sentence(labels: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    links = (*to_folder(tmp_path / "links"), "--write")
    assert "nothing.csv: No such file" in refusal(monkeypatch, tmp_path / "nothing.csv", *links)
    assert "not a file of labels" in refusal(monkeypatch, tmp_path / "crops" / "a" / "1.jpg", *links)
    assert "must be the OUTPUT_DIR of a run" in refusal(monkeypatch, tmp_path / "crops", *links)
    labels.write_text(labels.read_text().replace("/crops/", "/moved/"))
    assert "none of the 8 images exists" in refusal(monkeypatch, labels, *links)
    assert not (tmp_path / "links").exists()
    refusal(monkeypatch, labels)
    assert "the following arguments are required: --output" in capsys.readouterr().err


def test_many_images_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").touch()
    (tmp_path / "0_2.jpg").touch()
    paths = [str(tmp_path / name) for name in ["0_2.jpg"] + ["0.jpg"] * 20_000]
    clustering = PseudoLabels(paths, [""] * 20_001, np.full(20_001, -1), np.full(20_001, np.nan))
    targets = plan_links(clustering)
    assert len(targets) == 20_001 and targets["noise/0_2.jpg"].endswith("/0_2.jpg")
    assert targets["noise/0_3.jpg"].endswith("/0.jpg") and "noise/0_20001.jpg" in targets
