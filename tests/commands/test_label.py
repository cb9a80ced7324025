"""Labels as files and links: the command as a user runs it, which changes no original."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from fastreid_ice.commands import label
from fastreid_ice.reporting import PseudoLabels
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
    before, folder, output = snapshot(tmp_path), tmp_path / "links", tmp_path / "sorted.csv"
    run(monkeypatch, labels, "--links", folder, "--output", output)
    said = capsys.readouterr().out
    assert snapshot(tmp_path) == before and not folder.exists(), "a dry run creates nothing"
    assert f"Would make {folder}: 3 folders of clusters and one of noise, 8 links" in said
    assert f"Would write {output}: 8 images" in said and "Nothing was created; --write creates it." in said

    run(monkeypatch, labels, "--links", folder, "--output", output, "--write")
    made = {str(path.relative_to(folder)): os.readlink(path) for path in folder.rglob("*") if not path.is_dir()}
    assert made == {name: str(tmp_path / "crops" / target) for name, target in LINKS.items()}
    assert all((folder / name).read_text() == target for name, target in LINKS.items())
    assert all(path.is_symlink() for path in folder.glob("*/*"))
    after = snapshot(tmp_path)
    assert {path: after[path] for path in before} == before, "the originals, and the file of labels"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crops", "labels.csv", "links", "sorted.csv"]
    written = PseudoLabels.read(output)
    assert written.labels.tolist() == [0, 0, 3, 3, 3, 12345, -1, -1]
    assert written.distances[:6].tolist() == [0, 0.5, 0.125, 0.25, 0.25, 0]
    assert [Path(path).name for path in written.paths][5:7] == ["4", "3.jpg"]


def test_a_run_and_images_that_are_gone(labels: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """For a run with stages, the labels of the last one that has clustered; the folder may exist if it is empty."""
    cfg = small_config(OUTPUT_DIR="elsewhere")
    cfg.STAGES = ({"SOLVER": {"MAX_EPOCH": 1}},) * 3
    output = tmp_path / "run"
    for stage in ("stage1", "stage2"):
        (output / stage).mkdir(parents=True)
    (output / "config.yaml").write_text(cfg.dump())
    assert "has not clustered yet" in refusal(monkeypatch, output, "--links", tmp_path / "links")
    (output / "stage1" / "labels.csv").write_text("path,camera,label,distance_to_centroid\n")
    labels.rename(output / "stage2" / "labels.csv")
    (tmp_path / "crops" / "a" / "1.jpg").unlink()
    (tmp_path / "links").mkdir()
    run(monkeypatch, output, "--links", tmp_path / "links", "--write")
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
        (["--links", full], "full exists and is not empty"),
        (["--links", labels], "labels.csv exists and is not empty"),
        (["--output", labels], "labels.csv exists; name another file"),
        (["--links", tmp_path / "no" / "where"], "there is no folder"),
        (["--links", tmp_path / "broken"], "--links .*broken"),
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
        message = refusal(patched, labels, "--links", tmp_path / "links", "--write")
    assert "No space left on device" in message and len(made) == 5
    assert snapshot(tmp_path) == before and not list(tmp_path.glob(".*")), "the four links are removed as well"


def test_bad_input_is_one_sentence(labels: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    links = ("--links", tmp_path / "links", "--output", tmp_path / "new.csv", "--write")
    assert "nothing.csv: No such file" in refusal(monkeypatch, tmp_path / "nothing.csv", *links)
    assert "not a file of labels" in refusal(monkeypatch, tmp_path / "crops" / "a" / "1.jpg", *links)
    assert "must be the OUTPUT_DIR of a run" in refusal(monkeypatch, tmp_path / "crops", *links)
    labels.write_text(labels.read_text().replace("/crops/", "/moved/"))
    assert "none of the 8 images exists" in refusal(monkeypatch, labels, *links)
    assert not (tmp_path / "new.csv").exists() and not (tmp_path / "links").exists()
    refusal(monkeypatch, labels)
    assert "nothing to do: name a folder with --links" in capsys.readouterr().err


def test_many_images_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").touch()
    (tmp_path / "0_2.jpg").touch()
    paths = [str(tmp_path / name) for name in ["0_2.jpg"] + ["0.jpg"] * 20_000]
    clustering = PseudoLabels(paths, [""] * 20_001, np.full(20_001, -1), np.full(20_001, np.nan))
    targets = label.plan_links(clustering).targets
    assert len(targets) == 20_001 and targets["noise/0_2.jpg"].endswith("/0_2.jpg")
    assert targets["noise/0_3.jpg"].endswith("/0.jpg") and "noise/0_20001.jpg" in targets
