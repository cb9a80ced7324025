"""The index of a folder of images: its file, what is extracted again, and what a kill or a full disk leaves."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fastreid_ice import InputError
from fastreid_ice.data import Crops
from fastreid_ice.deploy import calibration
from fastreid_ice.deploy import index as index_module
from fastreid_ice.deploy.calibration import pair_quantiles, similarity_above
from fastreid_ice.deploy.encoder import Encoder
from fastreid_ice.deploy.index import ImageIndex, Origin, update_index
from processes import Process
from trained import make_trained

CAMERAS = ["DATASETS.FOLDER.CAMERAS", "_c([0-9])"]


@pytest.fixture(scope="module")
def crops(datasets_root: Path) -> Path:
    """54 crops of 6 people by 3 cameras."""
    return next(datasets_root.rglob("bounding_box_train"))


@pytest.fixture(scope="module")
def run(crops: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trained(tmp_path_factory.mktemp("trained") / "run", crops)


@pytest.fixture(scope="module")
def encoder(run: Path) -> Encoder:
    return Encoder(run, CAMERAS)


@pytest.fixture
def folder(crops: Path, tmp_path: Path) -> Path:
    """Ten of the crops."""
    (tmp_path / "images").mkdir()
    for path in sorted(crops.iterdir())[:10]:
        shutil.copy(path, tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture
def extracted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all images that an encoder is given during the test."""
    names: list[str] = []
    encode = Encoder.encode

    def recorded(self: Encoder, paths: list[str]) -> tuple[np.ndarray, np.ndarray]:
        names.extend(os.path.basename(path) for path in paths)
        return encode(self, paths)

    monkeypatch.setattr(Encoder, "encode", recorded)
    return names


def names_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def counts(update: index_module.Update) -> tuple[int, int, int, int]:
    return update.added, update.changed, update.kept, update.dropped


def test_the_file_holds_what_the_encoder_makes_of_each_image(
    crops: Path, encoder: Encoder, run: Path, tmp_path: Path
) -> None:
    done = update_index(tmp_path / "index", encoder, crops)
    assert counts(done) == (54, 0, 0, 0) and names_in(tmp_path / "index") == ["features.parquet"]
    table = pq.read_table(tmp_path / "index" / "features.parquet")
    assert table.column_names[:3] == ["path", "camera", "vector"]
    assert str(table.schema.field("vector").type) == f"fixed_size_list<element: float>[{done.index.features.shape[1]}]"
    paths = [str(path) for path in sorted(crops.iterdir())]
    assert table["path"].to_pylist() == paths
    assert table["camera"].to_pylist() == [os.path.basename(path)[6] for path in paths]
    with torch.no_grad():
        images = Crops(paths, (32, 16), {})[range(54)]["images"]
        expected = F.normalize(encoder.model.eval().encode(images, "momentum")).numpy()
        online = F.normalize(encoder.model.encode(images, "online")).numpy()
    np.testing.assert_allclose(np.array(table["vector"].to_pylist()), expected, rtol=0, atol=1e-6)
    assert np.abs(expected - online).max() > 1e-3, "the encoders are too similar for this test"
    read = ImageIndex.read(tmp_path / "index")
    np.testing.assert_array_equal(read.features, done.index.features)
    assert (read.paths, read.cameras, read.origin) == (paths, done.index.cameras, done.index.origin)
    assert read.origin.weights == str(run / "model_final.pth") and read.origin.fingerprint == encoder.fingerprint


def test_only_new_and_changed_images_are_extracted(
    folder: Path, run: Path, tmp_path: Path, extracted: list[str]
) -> None:
    encoder, index = Encoder(run, CAMERAS), tmp_path / "index"
    first = update_index(index, encoder, folder).index
    names = names_in(folder)
    assert set(names) <= set(extracted), "others calibrate the threshold"
    before = (index / "features.parquet").stat()
    extracted.clear()

    again = Encoder(run, CAMERAS)
    assert counts(update_index(index, again, folder)) == (0, 0, 10, 0)
    assert (index / "features.parquet").stat().st_ino == before.st_ino, "nothing was written"
    assert "model" not in vars(again), "no model was built"

    (folder / names[0]).unlink()
    shutil.copy(folder / names[2], folder / names[1])
    Image.new("RGB", (20, 40), "red").save(folder / "9999_c2s1_a.jpg")
    Image.new("RGB", (20, 40), "blue").save(folder / "0000_c3s1_b.png")
    done = update_index(index, again, folder)
    assert counts(done) == (2, 1, 8, 1) and sorted(extracted) == sorted(
        ["0000_c3s1_b.png", names[1], "9999_c2s1_a.jpg"]
    )
    found = ImageIndex.read(index)
    assert [os.path.basename(path) for path in found.paths] == names_in(folder)
    assert found.cameras[0] == "3" and found.cameras[-1] == "2"
    np.testing.assert_array_equal(found.features[2:-1], first.features[2:])
    np.testing.assert_allclose(found.features[1], first.features[2], atol=1e-6)
    whole = update_index(tmp_path / "whole", encoder, folder).index
    np.testing.assert_allclose(found.features, whole.features, rtol=0, atol=1e-6)

    extracted.clear()
    done = update_index(index, Encoder(run), folder)
    assert counts(done) == (0, 0, 11, 0) and not extracted and set(done.index.cameras) == {""}
    assert set(ImageIndex.read(index).cameras) == {""}, "cameras are not known any more"


def test_another_encoder_extracts_all(folder: Path, run: Path, crops: Path, tmp_path: Path) -> None:
    update_index(tmp_path / "index", Encoder(run), folder)
    done = update_index(tmp_path / "index", Encoder(run, ["INPUT.SIZE_TEST", "[64,32]"]), folder)
    assert done.afresh and done.kept == 0
    moved = shutil.copytree(run, tmp_path / "moved")
    assert Encoder(moved).fingerprint == Encoder(run).fingerprint
    update_index(tmp_path / "index", Encoder(run), folder)
    done = update_index(tmp_path / "index", Encoder(moved), folder)
    assert done.kept == 10 and ImageIndex.read(tmp_path / "index").origin.run == str(moved)
    checkpoint = torch.load(moved / "model_final.pth")
    next(iter(checkpoint["model"].values())).add_(1)
    torch.save(checkpoint, moved / "model_final.pth")
    assert Encoder(moved).fingerprint != Encoder(run).fingerprint


def test_the_encoder_of_a_run_in_stages_is_that_of_the_last(crops: Path, tmp_path: Path) -> None:
    """Also if it started from the best epoch of the stage before, and was compiled for training."""
    stages = ({"SOLVER": {"MAX_EPOCH": 2}}, {"MODEL": {"START_FROM": "best"}, "INPUT": {"SIZE_TEST": [48, 24]}})
    run = make_trained(tmp_path / "run", crops, STAGES=stages, MODEL__COMPILE=True)
    with pytest.raises(InputError, match="no weights there yet; wait for its first checkpoint"):
        Encoder(run)
    (run / "stage2").mkdir()
    shutil.move(run / "model_final.pth", run / "stage2")
    encoder = Encoder(run)
    assert encoder.cfg.INPUT.SIZE_TEST == [48, 24] and not encoder.cfg.MODEL.COMPILE
    assert encoder.encode([str(path) for path in crops.iterdir()][:3])[1].all()


def test_a_file_of_labels_names_images_and_cameras(
    folder: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = names_in(folder)
    lines = [f"images/{name},door {number % 2},0,\n" for number, name in enumerate(names)]
    Path("l.csv").write_text("path,camera,label,distance_to_centroid\nimages/gone.jpg,,0,\n" + "".join(lines))
    done = update_index(Path("index"), encoder, Path("images/../l.csv"))
    assert done.index.origin.source == str(tmp_path / "l.csv")
    assert update_index(Path("other"), encoder, Path("images/../images")).index.paths == done.index.paths
    assert done.gone == [str(tmp_path / "images" / "gone.jpg")]
    assert done.index.paths == [str(folder / name) for name in names]
    assert done.index.cameras == ["door 0", "door 1"] * 5


def test_names_of_any_bytes(folder: Path, run: Path, tmp_path: Path) -> None:
    first, second, *_ = sorted(folder.iterdir())
    camera = folder / os.fsdecode(b"caf\xe9")
    camera.mkdir()
    first.rename(camera / os.fsdecode(b"\xff.jpg"))
    second.rename(camera / "\\udcff.jpg")
    for path in folder.glob("*.jpg"):
        path.unlink()
    encoder = Encoder(run, ["DATASETS.FOLDER.CAMERAS", "folders"])
    update_index(tmp_path / "index", encoder, folder)
    table = pq.read_table(tmp_path / "index" / "features.parquet")
    assert table["path"].to_pylist()[1] == f"{folder}/caf\\udce9/\\udcff.jpg"
    found = ImageIndex.read(tmp_path / "index")
    assert sorted(found.paths) == sorted(str(path) for path in camera.iterdir())
    assert found.cameras == ["caf\\udce9"] * 2 and all(map(os.path.isfile, found.paths))
    assert counts(update_index(tmp_path / "index", encoder, folder)) == (0, 0, 2, 0)


def test_unreadable_images_are_refused_or_left_out(folder: Path, run: Path, encoder: Encoder, tmp_path: Path) -> None:
    update_index(tmp_path / "index", encoder, folder)
    (folder / "broken_c1.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match="^1 of 1 new images cannot be read, the first: .*broken_c1.jpg: .*UNREADABLE"):
        update_index(tmp_path / "index", encoder, folder)
    assert len(ImageIndex.read(tmp_path / "index").paths) == 10
    skipping = Encoder(run, [*CAMERAS, "DATALOADER.UNREADABLE", "skip"])
    done = update_index(tmp_path / "index", skipping, folder)
    assert done.unreadable == [str(folder / "broken_c1.jpg")] and counts(done) == (0, 0, 10, 0)
    before = (tmp_path / "index" / "features.parquet").stat()
    assert update_index(tmp_path / "index", skipping, folder).unreadable == done.unreadable
    assert (tmp_path / "index" / "features.parquet").stat().st_ino == before.st_ino, "nothing was written"
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a_c1.jpg").touch()
    with pytest.raises(InputError, match="none of the 1 images of .*none can be read"):
        update_index(tmp_path / "other", skipping, tmp_path / "none")
    assert not (tmp_path / "other").exists()


class TestWholeOrNotAtAll:
    @pytest.fixture
    def small(self) -> ImageIndex:
        rows = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
        return ImageIndex(
            [f"/{n}.jpg" for n in range(7)], ["1"] * 7, np.ones((7, 2), np.int64), rows, origin_of("first")
        )

    @pytest.mark.parametrize("when", ["half written", "one of two files in place"])
    @pytest.mark.parametrize("existing", [True, False])
    def test_a_kill(self, small: ImageIndex, tmp_path: Path, when: str, existing: bool) -> None:
        folder = tmp_path / "index"
        if existing:
            small.write(folder)
        killed = ImageIndex([], [], np.empty((0, 2), np.int64), np.empty((0, 4), np.float32), origin_of("second"))
        assert Process(write_until_killed, killed, folder, when, existing).wait() == -signal.SIGKILL
        assert len(list(tmp_path.rglob("*.ice-part"))) >= 1, "it was killed too late"
        if existing:
            np.testing.assert_array_equal(ImageIndex.read(folder).features, small.features)
        else:
            with pytest.raises(InputError, match="holds no index"):
                ImageIndex.read(folder)
        small.write(folder)
        assert ImageIndex.read(folder).origin == small.origin
        assert names_in(tmp_path) == ["index"] and names_in(folder) == ["features.parquet"], "nothing is left of it"

    def test_a_full_disk(self, small: ImageIndex, tmp_path: Path) -> None:
        small.write(tmp_path / "index")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
        try:
            for name in ("index", "new"):
                with pytest.raises(InputError, match=f"cannot write the index .*/{name}: File too large"):
                    small.write(tmp_path / name)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        np.testing.assert_array_equal(ImageIndex.read(tmp_path / "index").features, small.features)
        assert names_in(tmp_path) == ["index"]

    def test_only_the_current_inverted_file_is_kept(self, small: ImageIndex, tmp_path: Path) -> None:
        small.write(tmp_path / "index", exact_rows=5)
        assert names_in(tmp_path / "index") == ["cells-first.faiss", "features.parquet"]
        other = ImageIndex(small.paths, small.cameras, small.stamps, small.features, origin_of("second"))
        other.write(tmp_path / "index", exact_rows=5)
        assert names_in(tmp_path / "index") == ["cells-second.faiss", "features.parquet"]


def origin_of(name: str) -> Origin:
    return Origin("/run", "/run/model_final.pth", [], "f", "/images", "", {"all": None, "other cameras": None}, name)


def write_until_killed(index: ImageIndex, folder: Path, when: str, existing: bool) -> None:
    """Writes an index in a process that kills itself on the way."""

    def kill(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if when == "half written":
        index_module.ImageIndex._write_features = lambda self, file: (file.write(b"PAR1"), file.flush(), kill())
    elif existing:
        replace, done = Path.replace, []
        Path.replace = lambda self, target: kill() if done else done.append(replace(self, target))
        index_module.ImageIndex._write_cells = lambda self, path: path.touch()
        index.write(folder, exact_rows=-1)
    else:
        Path.rename = kill
    index.write(folder)


def test_files_that_are_no_index(tmp_path: Path) -> None:
    file = tmp_path / "features.parquet"
    file.write_bytes(b"PAR1 damaged")
    with pytest.raises(InputError, match="is not the file of an index, or is damaged .*; remove it, and run"):
        ImageIndex.read(tmp_path)
    pq.write_table(pq.read_table(foreign(tmp_path)), file)
    with pytest.raises(InputError, match="is not the file of an index"):
        ImageIndex.read(tmp_path)
    with pytest.raises(InputError, match="nowhere holds no index; `fastreid-ice search index` makes one"):
        ImageIndex.read(tmp_path / "nowhere")


def foreign(folder: Path) -> Path:
    import pyarrow as pa

    pq.write_table(pa.table({"path": ["a"], "vector": [[1.0]]}), folder / "foreign.parquet")
    return folder / "foreign.parquet"


class TestCalibration:
    def pairs(self, features: np.ndarray, labels: np.ndarray, cameras: np.ndarray | None = None) -> list[float]:
        return [
            float(features[i] @ features[j])
            for i in range(len(labels))
            for j in range(i)
            if labels[i] == labels[j] >= 0
            and (cameras is None or (cameras[i] != cameras[j] and min(cameras[i], cameras[j]) >= 0))
        ]

    @pytest.fixture
    def drawn(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        labels = rng.integers(-1, 6, 80)
        rows = rng.normal(size=(7, 16))[labels] + rng.normal(size=(80, 16))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels, rng.integers(-1, 3, 80)

    def test_the_quantiles_are_those_of_all_pairs(self, drawn: tuple) -> None:
        features, labels, cameras = drawn
        for others in (None, cameras):
            expected = np.quantile(self.pairs(features, labels, others), np.linspace(0, 1, 101))
            found = pair_quantiles(features, labels, others)
            np.testing.assert_allclose(found, expected, atol=2e-6)
            cosine = similarity_above(found, 0.9)
            assert np.mean(np.array(self.pairs(features, labels, others)) >= cosine) == pytest.approx(0.9, abs=0.02)

    def test_many_pairs_are_sampled(self, drawn: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
        features, labels, _ = drawn
        exact = pair_quantiles(features, labels)
        monkeypatch.setattr(calibration, "MOST_PAIRS", 300)
        sampled = pair_quantiles(features, labels)
        assert sampled != exact and sampled == pair_quantiles(features, labels)
        assert sampled[50] == pytest.approx(exact[50], abs=0.06)

    def test_without_pairs(self, drawn: tuple) -> None:
        features, labels, _ = drawn
        assert pair_quantiles(features, np.full(80, -1)) is None
        assert pair_quantiles(features, np.arange(80)) is None
        assert pair_quantiles(features, labels, np.zeros(80, int)) is None
        assert pair_quantiles(features[:0], labels[:0]) is None

    def test_whole_clusters_are_drawn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        labels = np.array([2**50, 5, -1, 5, 9, 2**50, 9, 9, -1])
        assert calibration._drawn_clusters(labels).tolist() == [0, 1, 3, 4, 5, 6, 7]
        monkeypatch.setattr(calibration, "CALIBRATED", 3)
        drawn = labels[calibration._drawn_clusters(labels)]
        assert 3 <= len(drawn) < 7 and all((drawn == label).sum() == (labels == label).sum() for label in set(drawn))

    def test_it_is_that_of_the_run_whatever_is_indexed(
        self, crops: Path, folder: Path, run: Path, tmp_path: Path
    ) -> None:
        """Features of the index count where it has them; a run without clusters has none."""
        whole = update_index(tmp_path / "whole", Encoder(run), crops).index
        part = update_index(tmp_path / "part", Encoder(run), folder).index
        labels = np.array([int(os.path.basename(path)[:4]) for path in whole.paths])
        cameras = np.array([int(os.path.basename(path)[6]) for path in whole.paths])
        for name, others in (("all", None), ("other cameras", cameras)):
            expected = np.quantile(self.pairs(whole.features, labels, others), np.linspace(0, 1, 101))
            for index in (whole, part):
                np.testing.assert_allclose(index.origin.calibration[name], expected, atol=1e-5)
        fresh = shutil.copytree(run, tmp_path / "fresh")
        (fresh / "labels.csv").unlink()
        done = update_index(tmp_path / "index", Encoder(fresh), folder)
        assert done.index.origin.calibration == {"all": None, "other cameras": None}
