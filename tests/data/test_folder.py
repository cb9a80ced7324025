"""Your own folder: the images found, their cameras, the messages about them, and training on it."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fastreid.config import CfgNode
from fastreid.engine import default_argument_parser
from PIL import Image

from fastreid_ice import InputError
from fastreid_ice.clusterers import GroundTruth
from fastreid_ice.commands.train import setup
from fastreid_ice.core import ImageTable
from fastreid_ice.data import (
    UnlabeledFolder,
    build_dataset,
    build_test_loader,
    build_training_set,
    existing_tests,
    inspect_images,
)
from fastreid_ice.data.folder import camera_in_name, list_images, list_with_cameras
from fastreid_ice.engine import UnsupervisedTrainer, check_config
from fastreid_ice.losses import check_cameras
from processes import run_command
from support import OSNET, ROOT, SMALL, small_config, train
from tiny_market import draw_tiny_market

CAMERA_AGNOSTIC = ("ClusterProxyLoss", "HardInstanceLoss", "SoftConsistencyLoss")


def draw(root: Path, *names: str, size: tuple[int, int] = (16, 32)) -> Path:
    """Different images of random pixels. Returns ``root``."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(sum(os.fsencode(name)))
        Image.fromarray(rng.integers(0, 256, (*reversed(size), 3), dtype=np.uint8)).save(path)
    return root


def folder_config(root: Path, **changes) -> CfgNode:
    """``small_config`` on a folder; further keys as KEY__KEY=value."""
    return small_config(
        DATASETS__NAMES=("UnlabeledFolder",),
        DATASETS__TESTS=("UnlabeledFolder",),
        DATASETS__ROOT=str(root),
        MODEL__LOSSES__NAME=CAMERA_AGNOSTIC,
        **changes,
    )


def test_any_image_at_any_depth(tmp_path: Path) -> None:
    names = ["a.JPG", "b c.jpeg", "deep/er/übung 7.png", "deep/x.WebP", "z.bmp"]
    draw(tmp_path, *names)
    draw(tmp_path, ".hidden.jpg", ".thumbnails/t.jpg")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.jpg").mkdir()
    assert list_images(tmp_path) == names
    data = UnlabeledFolder(str(tmp_path))
    assert data.paths == [str(tmp_path / name) for name in names] == [path for path, _, _ in data.train]


def test_links_are_followed_and_no_folder_is_read_twice(tmp_path: Path) -> None:
    outside = draw(tmp_path / "outside", "o.jpg", "sub/p.jpg")
    root = draw(tmp_path / "root", "cam/a.jpg")
    (root / "a link.jpg").symlink_to(root / "cam" / "a.jpg")
    (root / "again").symlink_to(root / "cam")  # images have their real names, although this one sorts first
    (root / "cam" / "up").symlink_to(root)
    (root / "there").symlink_to(outside)
    (outside / "sub" / "back").symlink_to(root / "cam")
    assert list_images(root) == ["a link.jpg", "cam/a.jpg", "there/o.jpg", "there/sub/p.jpg"]
    (root / "lost.jpg").symlink_to(root / "nowhere.jpg")
    assert "lost.jpg" in list_images(root), "a broken link is an image that cannot be read"


@pytest.mark.parametrize(
    ("rule", "texts", "numbers"),
    [
        ("none", [None] * 4, [-1] * 4),
        ("folders", ["cam10", "cam2", "cam2", "d"], [0, 1, 1, 2]),
        (r"([0-9]+)[^/]*\.jpg$", ["5", "3", "12", "3"], [2, 1, 0, 1]),
    ],
)
def test_cameras(tmp_path: Path, rule: str, texts: list[str], numbers: list[int]) -> None:
    draw(tmp_path, "cam10/5_a.jpg", "cam2/3b.jpg", "cam2/x/12.jpg", "d/e3.jpg")
    cfg = folder_config(tmp_path, DATASETS__FOLDER__CAMERAS=rule)
    assert build_dataset(cfg, "UnlabeledFolder").cameras == texts
    images = build_training_set(cfg)
    assert images.cameras.tolist() == numbers
    assert images.named_cameras == [text or "" for text in texts]
    assert images.identities.tolist() == [-1] * 4


BAD = {
    "no root": ([], {"DATASETS__ROOT": ""}, "DATASETS.ROOT is empty"),
    "no folder": ([], {"DATASETS__ROOT": "no/where"}, "DATASETS.ROOT 'no/where' is no folder"),
    "empty": ([], {}, "holds 0 images to train on .*.webp.*; at least 2 are needed"),
    "one image": (["a.jpg"], {}, "holds 1 images to train on"),
    "a query alone": (["a.jpg", "b.jpg", "query/x/1.jpg"], {}, "holds 'query' without 'gallery'"),
    "no match": (
        ["c1_a.jpg", "d.jpg", "e/f.jpg"],
        {"DATASETS__FOLDER__CAMERAS": "c([0-9])_"},
        "DATASETS.FOLDER.CAMERAS .* finds no camera in 2 of 3 paths below .*, the first: 'd.jpg'",
    ),
    "no folder for a camera": (["c1/a.jpg", "b.jpg"], {"DATASETS__FOLDER__CAMERAS": "folders"}, "in 1 of 2 .*'b.jpg'"),
    "an optional group": (["c1.jpg", "c.jpg"], {"DATASETS__FOLDER__CAMERAS": "c([0-9])?"}, "in 1 of 2 .*'c.jpg'"),
    "no group": (["a.jpg", "b.jpg"], {"DATASETS__FOLDER__CAMERAS": "c[0-9]"}, "with one group.* it has 0 groups"),
    "two groups": (["a.jpg", "b.jpg"], {"DATASETS__FOLDER__CAMERAS": "(c)([0-9])"}, "it has 2 groups"),
    "no expression": (["a.jpg", "b.jpg"], {"DATASETS__FOLDER__CAMERAS": "c([0-9]"}, "nor a regular expression: .*"),
}


@pytest.mark.parametrize("what", list(BAD))
def test_bad_folders_are_one_sentence(tmp_path: Path, what: str) -> None:
    names, changes, message = BAD[what]
    cfg = folder_config(draw(tmp_path, *names))
    cfg.merge_from_list([part for key, value in changes.items() for part in (key.replace("__", "."), value)])
    with pytest.raises(InputError, match=message) as error:
        build_training_set(cfg)
    assert "\n" not in str(error.value)


def test_query_and_gallery_are_evaluated_and_not_trained_on(tmp_path: Path) -> None:
    draw(tmp_path, "c2/a.jpg", "c1/b.jpg")
    assert existing_tests(folder_config(tmp_path)) == ()
    draw(tmp_path, "query/c1/eve/1.jpg", "query/c2/adam/2.jpg", "gallery/c10/eve/3.jpg", "gallery/c1/eve/4.png")
    (tmp_path / "again").symlink_to(tmp_path / "query")
    cfg = folder_config(tmp_path, DATASETS__FOLDER__CAMERAS="folders")
    assert existing_tests(cfg) == ("UnlabeledFolder",)
    data = build_dataset(cfg, "UnlabeledFolder")
    assert data.paths == [str(tmp_path / name) for name in ("c1/b.jpg", "c2/a.jpg")]
    query, gallery = tmp_path / "query", tmp_path / "gallery"
    assert data.query == [(str(query / "c1/eve/1.jpg"), 1, 0), (str(query / "c2/adam/2.jpg"), 0, 2)]
    assert data.gallery == [(str(gallery / "c1/eve/4.png"), 1, 0), (str(gallery / "c10/eve/3.jpg"), 1, 1)]
    loader, num_query = build_test_loader(cfg, "UnlabeledFolder")
    assert num_query == 2 and torch.cat([batch["targets"] for batch in loader]).tolist() == [1, 0, 1, 1]


def test_without_cameras_every_gallery_image_of_a_person_counts(tmp_path: Path) -> None:
    draw(tmp_path, "a.jpg", "b.jpg", "query/eve/1.jpg", "gallery/eve/2.jpg")
    data = UnlabeledFolder(str(tmp_path))
    assert [item[1:] for item in data.query + data.gallery] == [(0, 1), (0, 0)]


@pytest.mark.parametrize(
    ("rule", "names", "message"),
    [
        ("none", ["query/1.jpg", "gallery/eve/2.jpg"], "query/1.jpg' must lie in a folder query/<identity>"),
        ("folders", ["query/c1/1.jpg", "gallery/c1/eve/2.jpg"], "must lie in a folder query/<camera>/<identity>"),
        ("none", ["query/eve/1.jpg", "gallery/adam/2.jpg"], "no image in .*query' has its identity in .*gallery'$"),
        ("folders", ["query/c1/eve/1.jpg", "gallery/c1/eve/2.jpg"], "its identity in .*gallery' in another camera"),
        (
            "c([0-9])",
            ["query/eve/c1.jpg", "gallery/eve/x.jpg"],
            "no camera in 1 of 1 paths below .*gallery'.*eve/x.jpg",
        ),
    ],
)
def test_bad_query_and_gallery(tmp_path: Path, rule: str, names: list[str], message: str) -> None:
    draw(tmp_path, "c1/1.jpg", "c2/2.jpg", *names)
    with pytest.raises(InputError, match=message):
        UnlabeledFolder(str(tmp_path), cameras=rule)


def test_what_is_said_about_the_images(tmp_path: Path, caplog) -> None:
    draw(tmp_path, "a.jpg", "b.jpg", "c.png")
    draw(tmp_path, "small.jpg", size=(8, 40))
    draw(tmp_path, "large.png", size=(20, 30))
    shutil.copy(tmp_path / "a.jpg", tmp_path / "a again.jpg")
    shutil.copy(tmp_path / "a.jpg", tmp_path / "other.jpg")
    same_length = bytearray((tmp_path / "a.jpg").read_bytes())
    same_length[-10] ^= 1  # within the coded picture
    (tmp_path / "z.jpg").write_bytes(same_length)
    for i in range(11):
        (tmp_path / f"broken {i:02d}.jpg").write_bytes(b"")
    (tmp_path / "broken 11.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:400])
    paths = UnlabeledFolder(str(tmp_path)).paths
    with caplog.at_level(logging.INFO, logger="fastreid"):
        inspect_images(paths, unreadable="skip")
    text = caplog.text
    assert f"from 8 x 40 ({tmp_path}/small.jpg) to 20 x 30 ({tmp_path}/large.png)" in text
    assert f"12 of {len(paths)} images cannot be read:" in text
    assert "broken 09.jpg" in text and "broken 10.jpg" not in text and "... and 2 more" in text
    assert "Copies of other images, byte for byte: 2\n" in text
    assert f"{tmp_path}/a.jpg = {tmp_path}/a again.jpg" in text and f"{tmp_path}/other.jpg = " in text
    assert "z.jpg" not in text
    with pytest.raises(InputError, match="12 of 20 .*first: '.*broken 00.jpg'.*DATALOADER.UNREADABLE skip"):
        inspect_images(paths, unreadable="error")
    with pytest.raises(InputError, match="only 1 of 2 training images can be read"):
        inspect_images([paths[0], str(tmp_path / "broken 00.jpg")], unreadable="skip")


class TestRepeatedInspection:
    @pytest.fixture
    def paths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        draw(tmp_path / "crops", "a.jpg", "b.jpg", "c/c.png", "人.jpg", os.fsdecode(b"caf\xe9.jpg"))
        shutil.copy(tmp_path / "crops" / "a.jpg", tmp_path / "crops" / "copy.jpg")
        return UnlabeledFolder(str(tmp_path / "crops")).paths

    def said(self, paths: list[str], caplog, unreadable: str = "skip") -> str:
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="fastreid"):
            inspect_images(paths, unreadable=unreadable)
        return caplog.text

    def test_unchanged_files_are_not_read_again(self, paths: list[str], caplog) -> None:
        first = self.said(paths, caplog)
        broken = Path(paths[1])
        status, content = broken.stat(), broken.read_bytes()
        broken.write_bytes(bytes(len(content)))
        os.utime(broken, ns=(status.st_atime_ns, status.st_mtime_ns))
        again = self.said(paths, caplog)
        assert "6 of 6 images have not changed since they were read last" in again
        for sentence in ("Sizes (width x height): from", "Copies of other images, byte for byte: 1\n"):
            assert sentence in first and first.partition(sentence)[2].splitlines()[0] in again
        os.utime(broken, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        changed = self.said(paths, caplog)
        assert "5 of 6 images have not changed" in changed and "1 of 6 images cannot be read:" in changed
        # What was found before the error is kept.
        shutil.copy(broken.with_name("copy.jpg"), broken.with_name("new.jpg"))
        with pytest.raises(InputError, match="1 of 7 training images cannot be read"):
            inspect_images([*paths, str(broken.with_name("new.jpg"))], unreadable="error")
        broken.write_bytes(content)
        mended = self.said([*paths, str(broken.with_name("new.jpg"))], caplog, "error")
        assert "6 of 7 images have not changed" in mended and "byte for byte: 2\n" in mended

    def test_a_cache_that_cannot_be_used(self, paths: list[str], tmp_path: Path, caplog) -> None:
        (tmp_path / "cache").write_text("a file")
        assert "is not kept, so the next run reads all images again: " in self.said(paths, caplog)
        (tmp_path / "cache").unlink()
        self.said(paths, caplog)
        (kept,) = (tmp_path / "cache").rglob("*.parquet")
        kept.write_bytes(b"PAR1 and nothing")
        assert "have not changed" not in self.said(paths, caplog)
        assert "6 of 6 images have not changed" in self.said(paths, caplog)
        assert [path.name for path in kept.parent.iterdir()] == [kept.name]


def test_images_per_camera_are_logged(tmp_path: Path, caplog) -> None:
    draw(tmp_path, *(f"c{i:02d}/{j}.jpg" for i in range(22) for j in range(1 + i % 2)))
    with caplog.at_level(logging.INFO, logger="fastreid"):
        UnlabeledFolder(str(tmp_path), cameras="folders").show_train()
    assert "33 images" in caplog.text and "22 cameras" in caplog.text
    rows = [line.split() for line in caplog.text.splitlines()]
    assert ["c18", "1"] in rows and ["c19", "2"] in rows and ["c20", "1"] not in rows
    assert "... and 2 more" in caplog.text and "nothing to evaluate" in caplog.text


def test_losses_that_need_cameras_are_refused() -> None:
    cfg = small_config()
    check_cameras(cfg, torch.tensor([0, 0]))
    unknown = torch.tensor([0, -1, -1])
    with pytest.raises(InputError) as error:
        check_cameras(cfg, unknown)
    message = str(error.value)
    assert "CrossCameraLoss needs cameras, and those of 2 images are not known" in message
    assert str(CAMERA_AGNOSTIC) in message and "DATASETS.FOLDER.CAMERAS" in message
    cfg.MODEL.LOSSES.NAME = ("CrossCameraLoss",)
    with pytest.raises(InputError, match="name \\('ClusterProxyLoss',\\) instead"):
        check_cameras(cfg, unknown)
    cfg.MODEL.LOSSES.NAME = CAMERA_AGNOSTIC
    check_cameras(cfg, unknown)


def test_the_upper_bound_needs_identities() -> None:
    with pytest.raises(InputError, match="GroundTruth needs the identities"):
        GroundTruth().labels(torch.zeros(3, 2), ImageTable(identities=torch.tensor([0, -1, 1])))


def test_root_comes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path / "others"))
    cfg = small_config(DATASETS__NAMES=("Market1501",), DATASETS__ROOT=str(draw_tiny_market(tmp_path / "mine")))
    assert len(build_training_set(cfg)) == 16
    cfg.DATASETS.ROOT = ""
    with pytest.raises(InputError, match="dataset Market1501: .*'.*/others'"):
        build_training_set(cfg)
    cfg.DATASETS.ROOT, cfg.MODEL.META_ARCHITECTURE = str(tmp_path / "mine"), "Baseline"
    with pytest.raises(InputError, match="DATASETS.ROOT needs .* FASTREID_DATASETS"):
        check_config(cfg)
    cfg.DATASETS.ROOT, cfg.CORRECTIONS = "", "said.csv"
    with pytest.raises(InputError, match="CORRECTIONS needs MODEL.META_ARCHITECTURE MomentumReID"):
        check_config(cfg)


def test_labelled_and_unlabelled_images_together(tmp_path: Path) -> None:
    cfg = folder_config(draw(draw_tiny_market(tmp_path), "mine.jpg"))
    cfg.DATASETS.NAMES = ("Market1501", "UnlabeledFolder")
    images = build_training_set(cfg)
    assert images.identities.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [-1] * 29
    assert images.cameras.tolist() == [0, 0, 1, 1] * 4 + [-1] * 29


def crops(datasets_root: Path, target: Path) -> Path:
    """The training crops of the small synthetic data, in one folder. Returns it."""
    source = next(datasets_root.rglob("bounding_box_train"))
    shutil.copytree(source, target)
    return target


def test_training_evaluates_on_query_and_gallery(datasets_root: Path, tmp_path: Path) -> None:
    """In the layout of this dataset the metrics are those of the synthetic dataset with the same images."""
    root = crops(datasets_root, tmp_path / "crops")
    source = next(datasets_root.rglob("bounding_box_train")).parent
    for part, name in (("query", "query"), ("gallery", "bounding_box_test")):
        for path in (source / name).iterdir():
            target = root / part / path.name[:4] / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    weights = str(ROOT / "configs" / "source_osnet_x0_25.pth")
    changes = OSNET | {"SOLVER__MAX_EPOCH": 1, "MODEL__WEIGHTS": weights}
    cfg = folder_config(root, DATASETS__FOLDER__CAMERAS="_c([0-9])", OUTPUT_DIR=str(tmp_path / "own"), **changes)
    other = small_config(
        DATASETS__ROOT=str(datasets_root),
        MODEL__LOSSES__NAME=CAMERA_AGNOSTIC,
        OUTPUT_DIR=str(tmp_path / "x"),
        **changes,
    )
    found, expected = (train(config).storage.latest() for config in (cfg, other))
    for name in ("start/mAP", "mAP", "Rank-1", "cluster/number"):
        assert found[name] == expected[name]
    assert "cluster/ari" in expected and "cluster/ari" not in found


@pytest.mark.slow
def test_one_command(datasets_root: Path, tmp_path: Path) -> None:
    """The command of configs/ice_folder.yml on a flat folder: it ends without an evaluation, on the last weights."""
    root, output = crops(datasets_root, tmp_path / "crops"), tmp_path / "run"
    (root / "broken.jpg").write_bytes(b"broken")
    with pytest.raises(InputError, match="1 of 55 training images cannot be read"):
        UnsupervisedTrainer(folder_config(root))

    kept = ("INPUT.", "CLUSTER.", "DATALOADER.", "SOLVER.I", "SOLVER.M", "SOLVER.C")
    options = [str(part) for key, value in SMALL.items() if key.startswith(kept) for part in (key, value)]
    options += ["DATASETS.ROOT", str(root), "OUTPUT_DIR", str(output), "MODEL.DEVICE", "cpu"]
    arguments = ["--config-file", str(ROOT / "configs" / "ice_folder.yml"), *options]
    done = run_command("train", *arguments, "DATALOADER.UNREADABLE", "skip", folder=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in output.glob("*.pth")) == ["model_0000.pth", "model_final.pth"]
    assert f"The weights to use: {output}/model_final.pth" in done.stdout
    table = done.stdout[done.stdout.rindex("Epochs:") :].splitlines()
    assert table[1].split() == ["epoch", "clusters", "noise", "%"] and table[4].split()[0] == "2"
    scalars = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert not any(name.startswith(("mAP", "start/", "cluster/ari")) for line in scalars for name in line)
    assert {line["cluster/unreadable"] for line in scalars if "cluster/unreadable" in line} == {1}
    arguments += ["MODEL.WEIGHTS", str(output / "model_final.pth")]
    with pytest.raises(InputError, match="--eval-only: nothing to evaluate"):
        setup(default_argument_parser().parse_args(["--eval-only", *arguments]))


def test_all_images_of_a_folder_with_their_cameras(tmp_path: Path) -> None:
    """Also those of query and gallery, of one of them alone, and a single image."""
    draw(tmp_path, "query/1/anna/a.jpg", "2/b.jpg")
    pairs = list_with_cameras(tmp_path, cameras="folders", metadata="")
    assert pairs == [("2/b.jpg", "2"), ("query/1/anna/a.jpg", "1")]
    assert list_with_cameras(tmp_path / "2", cameras="none", metadata="") == [("b.jpg", "")]
    (tmp_path / "m.csv").write_text("path,camera\nquery/1/anna/a.jpg,door\n")
    pairs = list_with_cameras(tmp_path, cameras="none", metadata="m.csv")
    assert pairs == [("2/b.jpg", ""), ("query/1/anna/a.jpg", "door")]
    with pytest.raises(InputError, match="finds no camera in 1 of 1 paths below '.*query', the first: '1/anna/a.jpg'"):
        list_with_cameras(tmp_path, cameras="([0-9])/[ab].jpg", metadata="")


@pytest.mark.parametrize(
    ("cameras", "metadata", "camera"),
    [
        ("_c([0-9]+)", "", "12"),
        ("none", "_c(?P<camera>[0-9]+)_t(?P<track>[0-9]+)", "12"),
        ("none", "_t(?P<track>[0-9]+)", ""),
        ("cam([0-9])", "", ""),
        ("none", "cam(?P<camera>[0-9])", ""),
        ("folders", "", ""),
        ("none", "missing.csv", ""),
        ("none", "", ""),
    ],
)
def test_the_camera_in_the_name_of_an_image_elsewhere(cameras: str, metadata: str, camera: str) -> None:
    assert camera_in_name("0007_c12_t3.jpg", cameras=cameras, metadata=metadata) == camera
