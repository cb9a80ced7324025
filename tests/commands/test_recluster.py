"""The reclustering tool as a user runs it: files in, a CSV file out, or an error of one sentence."""

from __future__ import annotations

import csv
import logging
import os
import resource
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.cluster import DBSCAN

from fastreid_ice.commands import recluster
from fastreid_ice.core import jaccard_graph, k_nearest
from processes import run_command
from support import ROOT, SMALL

OPTIONS = ["MODEL.DEVICE", "cpu", "CLUSTER.K1", "12", "CLUSTER.EPS", "0.5"]


def blobs(dtype: type = np.float32) -> np.ndarray:
    """(103, 32) rows of different lengths: 10 clusters of 10, and 3 rows far from all."""
    rng = np.random.default_rng(0)
    rows = np.concatenate(
        [np.repeat(rng.normal(size=(10, 32)), 10, 0) + 0.2 * rng.normal(size=(100, 32)), -np.eye(32)[:3]]
    )
    return (rows * rng.uniform(0.5, 3, (103, 1)))[rng.permutation(103)].astype(dtype)


def read(path: Path) -> dict[str, list[str]]:
    """The columns of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows] for name in rows[0]}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    """The command, in this process."""
    monkeypatch.setattr(sys, "argv", ["recluster.py", *map(str, arguments)])
    recluster.main()


@pytest.mark.slow
def test_labels_and_distances_of_features(tmp_path: Path) -> None:
    features = blobs(np.float16)
    np.save(tmp_path / "features.npy", features)
    done = run_command("recluster", "--features", "features.npy", *OPTIONS, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.npy", "labels.csv"]
    columns = read(tmp_path / "labels.csv")
    assert list(columns) == ["path", "camera", "label", "distance_to_centroid"]
    assert columns["path"] == [str(row) for row in range(103)] and set(columns["camera"]) == {""}

    rows = features.astype(np.float64)
    distances = jaccard_graph(rows, k_nearest(rows, 12)[1], k1=12, k2=6).toarray()
    dense = np.where(distances == 0, np.where(np.eye(103), 0, 1), distances)
    expected = DBSCAN(eps=0.5, min_samples=4, metric="precomputed").fit_predict(dense)
    labels = np.array(columns["label"], dtype=int)
    assert np.array_equal(labels, expected) and labels.max() > 5 and labels.min() == -1
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    centroids = np.array([unit[labels == label].mean(0) for label in range(labels.max() + 1)])
    cosines = unit @ (centroids / np.linalg.norm(centroids, axis=1, keepdims=True)).T
    own = np.where(labels < 0, cosines.max(1), cosines[np.arange(103), labels])
    assert np.array(columns["distance_to_centroid"], dtype=float) == pytest.approx(1 - own, abs=2e-6)
    for stage in ("features", "neighbors", "jaccard", "dbscan", "distances"):
        assert stage in done.stdout[done.stdout.index("Seconds:") :]
    noise, largest = (labels < 0).mean(), np.bincount(labels[labels >= 0]).max()
    assert done.stdout.splitlines()[-1] == (
        f"103 images, {labels.max() + 1} clusters, {noise:.1%} noise, largest cluster {largest} images: labels.csv"
    )


def test_a_giant_cluster_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """After the numbers, with the keys that were used."""
    monkeypatch.chdir(tmp_path)
    np.save("features.npy", np.random.default_rng(0).normal(size=(120, 8)))
    run(monkeypatch, "--features", "features.npy", "MODEL.DEVICE", "cpu", "CLUSTER.K1", "40", "CLUSTER.EPS", "0.9")
    numbers, said = capsys.readouterr().out.splitlines()[-2:]
    assert numbers.startswith("120 images, 1 clusters, ")
    assert said.startswith("One cluster holds ") and "lower CLUSTER.EPS (0.9) or CLUSTER.K1 (40), or let" in said


def test_the_defaults_suit_a_small_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """K1 follows the number of images, and the radius the graph, unless they or a config are named."""
    monkeypatch.chdir(tmp_path)
    np.save("features.npy", blobs())
    for options, k1, eps in (
        ([], True, True),
        (["CLUSTER.K1", "12"], False, True),
        (["CLUSTER.EPS", "0.5"], True, False),
        (["--config-file", "base-ice.yml"], False, False),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="fastreid"):
            run(monkeypatch, "--features", "features.npy", *options, "MODEL.DEVICE", "cpu")
        assert ("CLUSTER.AUTO_K1 chose 14 neighbours for 103 images" in caplog.text) == k1
        assert ("CLUSTER.AUTO_EPS chose the radius" in caplog.text) == eps


def test_corrections_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of features: by the names in --paths, or by row numbers."""
    monkeypatch.chdir(tmp_path)
    np.save("features.npy", blobs())
    run(monkeypatch, "--features", "features.npy", *OPTIONS)
    columns = read(tmp_path / "labels.csv")
    before, distances = np.array(columns["label"], int), np.array(columns["distance_to_centroid"], float)
    one, other, third = (int(np.where(before == label, distances, 2).argmin()) for label in range(3))  # the centres
    for extra, names in (([], list(range(103))), (["--paths", "names.txt"], [f"crops/{i}.jpg" for i in range(103)])):
        Path("names.txt").write_text("\n".join(map(str, names)))
        Path("said.csv").write_text(f"image,relation,other\n{names[one]},same,{names[other]}\n{names[third]},nobody,\n")
        run(monkeypatch, "--features", "features.npy", *extra, *OPTIONS, "CORRECTIONS", "said.csv")
        columns = read(tmp_path / "labels.csv")
        assert columns["path"] == [str(name) for name in names]
        assert columns["label"][one] == columns["label"][other] != "-1" and columns["label"][third] == "-1"
        assert len(set(columns["label"])) == len(set(before.tolist())) - 1
    Path("said.csv").write_text("image,relation,other\n103,nobody,\n")
    with pytest.raises(SystemExit, match="said.csv, line 2: there is no image '103' among the 103"):
        run(monkeypatch, "--features", "features.npy", *OPTIONS, "CORRECTIONS", "said.csv")


def test_a_sweep_shows_k1_and_radii(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Each row of the file is what clustering with these keys gives; the table marks the radius that AUTO_EPS takes."""
    monkeypatch.chdir(tmp_path)
    np.save("features.npy", blobs())
    run(monkeypatch, "--features", "features.npy", "--sweep", "MODEL.DEVICE", "cpu", "CLUSTER.K1", "12")
    assert sorted(os.listdir()) == ["features.npy", "sweep.csv", "sweep.png"]
    columns = read(Path("sweep.csv"))
    assert list(columns) == ["k1", "eps", "clusters", "noise_share", "largest", "expected_f"]
    assert list(dict.fromkeys(columns["k1"])) == ["6", "10", "12", "15", "20", "30"] and len(columns["k1"]) == 6 * 21
    said = capsys.readouterr().out
    assert said.splitlines()[-1].startswith("103 images; * has the highest expected F-measure of its K1.")
    marked = [line.split() for line in said.splitlines() if line.endswith(" *")]
    assert [row[0] for row in marked] == list(dict.fromkeys(columns["k1"]))
    for k1, _, clusters, noise, largest, *_ in marked[2:4]:
        keys = ["CLUSTER.K1", k1, "CLUSTER.AUTO_EPS", "True"]
        run(monkeypatch, "--features", "features.npy", "MODEL.DEVICE", "cpu", *keys)
        expected = f"103 images, {clusters} clusters, {noise}% noise, largest cluster {largest} images: labels.csv"
        assert capsys.readouterr().out.splitlines()[-1] == expected
    with Image.open("sweep.png") as picture:
        assert picture.size[0] == 960
        for panel in ("clusters", "noise, % of images", "largest cluster, % of images", "expected F-measure"):
            assert f"{panel}: K1 6 " in picture.text["Description"]


def test_names_and_another_clusterer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """k-means, too, depends only on the direction of a row, not on its length."""
    monkeypatch.chdir(tmp_path)
    rows = blobs(np.float64)
    np.save("scaled.npy", rows)
    np.save("unit.npy", rows / np.linalg.norm(rows, axis=1, keepdims=True))
    names = [f"crops, ä/{row}.jpg" for row in range(103)]
    Path("names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    kmeans = [*OPTIONS, "CLUSTER.NAME", "KMeans", "CLUSTER.NUM_CLUSTERS", "13"]
    for kind in ("scaled", "unit"):
        run(monkeypatch, "--features", f"{kind}.npy", "--paths", "names.txt", "--output", f"{kind}.csv", *kmeans)
    columns = read(Path("unit.csv"))
    assert read(Path("scaled.csv"))["label"] == columns["label"]
    assert columns["path"] == names and set(columns["label"]) == {str(label) for label in range(13)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_unit_rows_are_not_copied(dtype: torch.dtype) -> None:
    rows = torch.nn.functional.normalize(torch.randn(9, 64, generator=torch.Generator().manual_seed(0))).to(dtype)
    assert recluster.unit_rows(rows, "f.npy") is rows
    scaled = recluster.unit_rows(rows * 5, "f.npy")
    assert scaled.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(scaled, rows.to(scaled.dtype), rtol=0, atol=2e-3)


def test_images_of_a_folder(datasets_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder whose name is a number, cameras by name, and an image that cannot be read."""
    folder = tmp_path / "2024"
    shutil.copytree(next(datasets_root.rglob("bounding_box_train")), folder)
    (folder / "0000_c9s1.jpg").write_bytes(b"broken")
    kept = ("INPUT.", "DATALOADER.", "MODEL.D")
    small = [str(part) for key, value in SMALL.items() if key.startswith(kept) for part in (key, value)]
    weights = [
        "MODEL.WEIGHTS",
        str(ROOT / "configs" / "source_osnet_x0_25.pth"),
        "DATASETS.FOLDER.CAMERAS",
        "_c([0-9])",
        "CLUSTER.AUTO_EPS",
        "True",
    ]
    monkeypatch.chdir(tmp_path)
    arguments = [
        "--images",
        "2024",
        "--config-file",
        str(ROOT / "configs" / "ice_folder.yml"),
        *small,
        *OPTIONS,
        *weights,
    ]
    with pytest.raises(SystemExit, match="error: 1 of 55 training images cannot be read"):
        run(monkeypatch, *arguments)
    assert not Path("labels.csv").exists()
    run(monkeypatch, *arguments, "DATALOADER.UNREADABLE", "skip", "CLUSTER.DISTANCE", "ca_jaccard")  # needs the cameras
    columns = read(Path("labels.csv"))
    assert len(columns["path"]) == 55 and columns["path"] == sorted(columns["path"])
    assert all(Path(path).is_file() for path in columns["path"])
    assert columns["camera"] == [Path(path).name[6] for path in columns["path"]]
    assert (columns["label"][0], columns["distance_to_centroid"][0]) == ("-1", "")
    assert len(set(columns["label"])) > 2


def save(folder: Path, array: np.ndarray) -> list[str | Path]:
    np.save(folder / "f.npy", array)
    return ["--features", folder / "f.npy"]


def with_row(value: float) -> np.ndarray:
    rows = blobs()
    rows[7] = value
    return rows


BAD = {
    "no file": (lambda folder: ["--features", "no.npy"], "--features no.npy: No such file"),
    "a folder": (lambda folder: ["--features", folder], "Is a directory"),
    "no array": (lambda folder: ["--features", ROOT / "README.md"], "README.md is not a .npy file of numbers"),
    "an empty file": (lambda folder: ["--features", touch(folder / "e.npy")], "e.npy is not a .npy file of numbers"),
    "objects": (lambda folder: save(folder, np.array([[None]])), "is not a .npy file of numbers"),
    "an archive": (lambda folder: ["--features", archive(folder / "a.npz")], "is an archive of arrays"),
    "a vector": (lambda folder: save(folder, np.ones(9)), r"array \(N, D\), not float64 \(9,\)"),
    "integers": (lambda folder: save(folder, np.ones((9, 2), int)), r"array \(N, D\), not int64 \(9, 2\)"),
    "two rows": (lambda folder: save(folder, np.ones((2, 4))), "holds 2 rows; at least 3 are needed"),
    "NaN": (lambda folder: save(folder, with_row(np.nan)), "row 7 and 0 more of 103 are all zeros, or hold NaN"),
    "a zero row": (lambda folder: save(folder, with_row(0)), "row 7 and 0 more of 103 are all zeros"),
    "names": (
        lambda folder: [*save(folder, blobs()), "--paths", ROOT / "LICENSE"],
        "LICENSE has [0-9]+ lines, but .*f.npy has 103 rows",
    ),
    "no names": (lambda folder: [*save(folder, blobs()), "--paths", "no.txt"], "--paths no.txt: No such file"),
    "no output folder": (
        lambda folder: [*save(folder, blobs()), "--output", "no/l.csv"],
        "--output no/l.csv: its folder",
    ),
    "an output folder": (lambda folder: [*save(folder, blobs()), "--output", folder], "or it is a folder itself"),
    "a sweep of other keys": (
        lambda folder: [*save(folder, blobs()), "--sweep", "CLUSTER.NAME", "KMeans"],
        "--sweep varies CLUSTER.K1 and CLUSTER.EPS, which CLUSTER.NAME KMeans with CLUSTER.DISTANCE jaccard does not",
    ),
    "a sweep into a picture": (
        lambda folder: [*save(folder, blobs()), "--sweep", "--output", folder / "s.png"],
        "s.png names the table of --sweep.* end it in .csv",
    ),
    "a key": (lambda folder: [*save(folder, blobs()), "CLUSTER.EPS", "1.5"], "CLUSTER.EPS 1.5 must lie"),
    "the upper bound": (lambda folder: [*save(folder, blobs()), "CLUSTER.NAME", "GroundTruth"], "needs the identities"),
    "no weights": (
        lambda folder: [
            *("--images", folder, "--config-file", ROOT / "configs" / "ice_folder_r50.yml", "INPUT.AUTO_SIZE", "False")
        ],
        "MODEL.WEIGHTS is empty",
    ),
    "another model": (
        lambda folder: [*save(folder, blobs()), "--config-file", ROOT / "configs" / "source_synthetic.yml"],
        "MODEL.META_ARCHITECTURE must be MomentumReID",
    ),
}


def touch(path: Path) -> Path:
    path.touch()
    return path


def archive(path: Path) -> Path:
    np.savez(path, blobs())
    return path


@pytest.mark.parametrize("what", list(BAD))
def test_bad_input_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    arguments, message = BAD[what]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message) as error:
        run(monkeypatch, *arguments(tmp_path))
    assert str(error.value.code).startswith("error: ") and "\n" not in error.value.code
    assert not list(tmp_path.glob("**/*.csv*"))


def test_what_does_not_fit_on_the_disk_leaves_the_file_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("features.npy", blobs())
    run(monkeypatch, "--features", "features.npy", *OPTIONS)
    before = Path("labels.csv").read_text()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(SystemExit, match="^error: --output labels.csv: File too large$"):
            run(monkeypatch, "--features", "features.npy", *OPTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(before) > 1000 and Path("labels.csv").read_text() == before
    assert sorted(os.listdir()) == ["features.npy", "labels.csv"]
