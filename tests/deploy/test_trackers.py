"""The files that trackers load, in the trackers themselves where they are installed, and by what was found in them.

boxmot and ultralytics are large and pin versions that conflict with ours, so that CI does not install them.
docs/trackers.md says how to run these tests with them.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastreid.modeling import build_model
from PIL import Image

from fastreid_ice import InputError
from fastreid_ice.commands import export
from fastreid_ice.data import SyntheticPeople
from fastreid_ice.deploy import export_onnx
from fastreid_ice.engine import Checkpointer, build_own_config
from fastreid_ice.modeling import MomentumReID
from support import ROOT

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

HEIGHT, WIDTH = 128, 64
MEAN, STD = (np.float32(values).reshape(3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    """100 drawn people, of the size of the network's input."""
    root = tmp_path_factory.mktemp("people")
    few = {"TRAIN_IDENTITIES": 25, "TEST_IDENTITIES": 1, "CAMERAS": 2, "IMAGES_PER_CAMERA": 2}
    cfg = build_own_config("ice_demo.yml", options(few))
    SyntheticPeople(str(root), **SyntheticPeople.from_config(cfg))
    images = [Image.open(path) for path in sorted(root.glob("synthetic-people/*/bounding_box_train/*.jpg"))]
    assert len(images) == 100 and {image.size for image in images} == {(WIDTH, HEIGHT)}
    return images


@pytest.fixture(scope="module")
def model() -> MomentumReID:
    """The demo's encoder, but with a normalisation of its own: that of the weights equals boxmot's."""
    cfg = config()
    model = build_model(cfg)
    Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    return model.eval()


@pytest.fixture(scope="module")
def folder(model: MomentumReID, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    for tracker in ("boxmot", "ultralytics"):
        path, cosines = export_onnx(config(), model, folder, tracker=tracker)
        assert path == folder / f"encoder_{tracker}.onnx" and (cosines > 1 - 1e-6).all()
    assert len(list(folder.iterdir())) == 2
    return folder


@pytest.fixture(scope="module")
def expected(model: MomentumReID, people: list[Image.Image]) -> np.ndarray:
    with torch.no_grad():
        return F.normalize(model(torch.from_numpy(pixels(people)))).numpy()


def config():
    return build_own_config("ice_demo.yml", ["MODEL.DEVICE", "cpu", "MODEL.PIXEL_MEAN", "[110.0, 120.0, 130.0]"])


def options(node: dict[str, int]) -> list[str]:
    return [part for key, value in node.items() for part in (f"DATASETS.SYNTHETIC.{key}", str(value))]


def pixels(images: list[Image.Image]) -> np.ndarray:
    """(N, 3, H, W) float32 in [0, 255]."""
    return np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2).astype(np.float32)


def frame_and_boxes(images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """A BGR frame that shows the images side by side, and the box of each: left, top, right, bottom."""
    frame = np.hstack([np.asarray(image) for image in images])[..., ::-1]
    left = WIDTH * np.arange(len(images))
    return np.ascontiguousarray(frame), np.stack([left, 0 * left, left + WIDTH, 0 * left + HEIGHT], 1).astype(float)


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """The bar is a cosine of 1 - 1e-3; of crops that need no resizing, only rounding is left."""
    assert found.shape == expected.shape
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1)
    assert cosines.min() > 1 - 1e-5, cosines.min()


class TestContract:
    """What the loaders read from the graph, and what they feed."""

    @pytest.mark.parametrize("tracker", ["boxmot", "ultralytics"])
    def test_input_and_output(self, folder: Path, tracker: str) -> None:
        session = onnxruntime.InferenceSession(folder / f"encoder_{tracker}.onnx")
        (images,), (features,) = session.get_inputs(), session.get_outputs()
        assert (images.name, images.type, images.shape) == ("images", "tensor(float)", ["batch", 3, HEIGHT, WIDTH])
        assert (features.type, features.shape) == ("tensor(float)", ["batch", 128])

    @pytest.mark.parametrize("batch", [1, 7])
    def test_features_of_what_each_feeds(
        self, folder: Path, people: list[Image.Image], expected: np.ndarray, batch: int
    ) -> None:
        """Both feed RGB / 255, boxmot then with ImageNet's mean and deviation."""
        shares = pixels(people[:batch]) / 255
        for tracker, fed in (("boxmot", (shares - MEAN) / STD), ("ultralytics", shares)):
            session = onnxruntime.InferenceSession(folder / f"encoder_{tracker}.onnx")
            assert_same(session.run(None, {"images": fed})[0], expected[:batch])
            swapped = session.run(None, {"images": fed[:, ::-1]})[0]
            assert (swapped * expected[:batch]).sum(1).max() < 1 - 1e-3, "a network that does not see colours"

    def test_the_command(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        (tmp_path / "encoder.onnx").write_text("of an earlier export")
        export.main(
            [
                "--config-file",
                str(ROOT / "configs" / "ice_demo.yml"),
                "--for",
                "boxmot",
                "--output",
                str(tmp_path),
                "MODEL.DEVICE",
                "cpu",
            ]
        )
        message = capsys.readouterr().out
        assert message.endswith(f"1.0000 on average, 1.0000 at least:\n{tmp_path / 'encoder_boxmot.onnx'}\n")
        assert (tmp_path / "encoder.onnx").read_text() == "of an earlier export"
        with pytest.raises(SystemExit, match="2"):
            export.main(["--run", "logs", "--for", "deepsort", "--output", str(tmp_path)])
        assert "choose from boxmot, ultralytics" in capsys.readouterr().err.replace("'", "")


class TestBoxmot:
    @pytest.fixture
    def boxmot(self) -> None:
        """Where boxmot finds the version of onnxruntime that it wants; it would install that otherwise."""
        pytest.importorskip("boxmot", reason="boxmot is not installed")
        dependencies = import_module("boxmot.reid.backends.dependencies")
        (wanted,) = dependencies.reid_backend_requirements("onnx", device="cpu", system_name="Linux")
        if not dependencies.requirement_satisfied(wanted):
            pytest.skip(f"boxmot {version('boxmot')} needs {wanted}")

    def test_its_encoder_has_our_features(
        self, boxmot: None, folder: Path, people: list[Image.Image], expected: np.ndarray
    ) -> None:
        reid = import_module("boxmot.reid.core.runtime").ReID(folder / "encoder_boxmot.onnx")
        assert tuple(reid.model.input_shape) == (HEIGHT, WIDTH)
        assert_same(reid([np.asarray(image)[..., ::-1] for image in people]), expected)
        frame, boxes = frame_and_boxes(people)
        assert_same(reid(frame, boxes), expected)

    def test_its_tracker_keeps_them(
        self, boxmot: None, folder: Path, people: list[Image.Image], expected: np.ndarray
    ) -> None:
        tracker = import_module("boxmot").BotSort(reid_weights=folder / "encoder_boxmot.onnx", use_cmc=False)
        frame, boxes = frame_and_boxes(people[:8])
        tracks = tracker.update(np.column_stack([boxes, np.full(8, 0.9), np.zeros(8)]), frame)
        assert len(tracks) == 8
        kept = np.stack([track.curr_feat for track in sorted(tracker.active_tracks, key=lambda track: track.xyxy[0])])
        assert_same(kept, expected[:8])


class TestUltralytics:
    @pytest.fixture
    def ultralytics(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """With settings in a temporary folder, and without installing anything."""
        monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
        monkeypatch.setenv("YOLO_AUTOINSTALL", "false")
        try:
            version("ultralytics")
        except PackageNotFoundError:
            pytest.skip("ultralytics is not installed")

    def test_its_encoder_has_our_features(
        self, ultralytics: None, folder: Path, people: list[Image.Image], expected: np.ndarray
    ) -> None:
        """It adds a margin to each box, which ends with the image: each person is an image of its own."""
        reid = import_module("ultralytics.trackers.utils.reid").ReID(folder / "encoder_ultralytics.onnx", device="cpu")
        assert reid.imgsz == (HEIGHT, WIDTH) and reid.batch_size is None
        box = np.float32([[WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT]])
        assert_same(np.vstack([reid(np.asarray(image)[..., ::-1], box) for image in people]), expected)
        batch = reid._crops_to_tensor([np.asarray(image)[..., ::-1] for image in people])
        assert_same(reid.model(batch).numpy(), expected)

    def test_its_tracker_keeps_them(
        self, ultralytics: None, folder: Path, people: list[Image.Image], expected: np.ndarray
    ) -> None:
        """With the keys of its botsort.yaml as docs/trackers.md changes them."""
        package = Path(import_module("ultralytics").__file__).parent
        settings = import_module("yaml").safe_load((package / "cfg" / "trackers" / "botsort.yaml").read_text())
        settings |= {"with_reid": True, "model": str(folder / "encoder_ultralytics.onnx"), "device": "cpu"}
        tracker = import_module("ultralytics.trackers.bot_sort").BOTSORT(SimpleNamespace(**settings))
        boxes = import_module("ultralytics.engine.results").Boxes(
            np.float32([[0, 0, WIDTH, HEIGHT, 0.9, 0]]), (HEIGHT, WIDTH)
        )
        assert len(tracker.update(boxes, np.ascontiguousarray(np.asarray(people[0])[..., ::-1]))) == 1
        assert_same(tracker.tracked_stracks[0].curr_feat[None], expected[:1])


def test_an_encoder_that_cannot_be_exported_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "encoder_boxmot.onnx"
    path.write_text("of an earlier export")
    broken = build_model(config())
    with torch.no_grad():
        broken.momentum["heads"].bottleneck[0].weight[0] = torch.nan
    with pytest.raises(InputError, match="not finite: its checkpoint holds NaN"):
        export_onnx(config(), broken, tmp_path, tracker="boxmot")
    assert path.read_text() == "of an earlier export" and len(list(tmp_path.iterdir())) == 1
