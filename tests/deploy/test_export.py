"""The export as a user runs it: the files in onnxruntime and in fast-reid without this plugin."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, get_cfg
from fastreid.modeling import build_model
from fastreid.utils.checkpoint import Checkpointer
from fastreid.utils.events import EventStorage
from PIL import Image

from fastreid_ice import InputError, add_ice_config
from fastreid_ice.commands import export
from fastreid_ice.data import SyntheticPeople, build_test_loader
from fastreid_ice.deploy import export_encoder
from fastreid_ice.engine import UnsupervisedTrainer
from fastreid_ice.modeling import MomentumReID
from processes import run_command
from support import ROOT, small_config, train

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

DEMO = ROOT / "configs" / "ice_demo.yml"
SOURCE = ROOT / "configs" / "source_osnet_x0_25.pth"
FEW = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(SOURCE)]
for key, value in {"TRAIN_IDENTITIES": 4, "TEST_IDENTITIES": 12, "CAMERAS": 3, "IMAGES_PER_CAMERA": 3}.items():
    FEW += [f"DATASETS.SYNTHETIC.{key}", str(value)]
FILES = ["encoder.onnx", "fastreid.pth", "fastreid.yml"]

# fast-reid with the patches of compat and nothing else of this plugin, on a folder in the layout of Market-1501.
PLAIN_FAST_REID = """
import json, sys, types
plugin = types.ModuleType("fastreid_ice")
plugin.__path__ = [sys.argv[1]]
sys.modules["fastreid_ice"] = plugin
from fastreid_ice import compat
compat.apply()
from fastreid.config import get_cfg
from fastreid.engine import DefaultTrainer
from fastreid.utils.checkpoint import Checkpointer
cfg = get_cfg()
cfg.merge_from_file(sys.argv[2])
cfg.merge_from_list(["DATASETS.TESTS", "('Market1501',)", "MODEL.DEVICE", "cpu"])
model = DefaultTrainer.build_model(cfg)
Checkpointer(model).load(cfg.MODEL.WEIGHTS)
figures = DefaultTrainer.test(cfg, model)
patches = ("fastreid_ice.compat", "fastreid_ice.core")  # compat ranks by core
ours = [name for name in sys.modules if name.startswith("fastreid_ice.") and not name.startswith(patches)]
figures.pop("dataset", None)
print(json.dumps([type(model).__name__, type(model.heads).__name__, ours, figures], default=float))
"""


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of datasets with pictures of 12 people to test on."""
    root = tmp_path_factory.mktemp("people")
    SyntheticPeople(str(root), **SyntheticPeople.from_config(demo_config()))
    return root


@pytest.fixture(scope="module")
def trained(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose two encoders differ."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTREID_DATASETS", str(people))
        cfg = demo_config("DATASETS.TESTS", (), "OUTPUT_DIR", str(tmp_path_factory.mktemp("run")))
        cfg.merge_from_list(["SOLVER.MAX_EPOCH", 1, "SOLVER.ITERS_PER_EPOCH", 2, "SOLVER.WARMUP_ITERS", 0])
        cfg.merge_from_list(["CLUSTER.NAME", "GroundTruth", "SOLVER.IMS_PER_BATCH", 8, "SOLVER.BASE_LR", 0.002])
        train(cfg)
    return Path(cfg.OUTPUT_DIR, "model_final.pth")


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the command exports it to."""
    folder = tmp_path_factory.mktemp("work") / "exported"
    done = run_command("export", "--config-file", DEMO, "--weights", trained, "--output", folder, *FEW, folder=ROOT)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    assert done.stdout.startswith(f"The momentum encoder of {trained}, ") and len(done.stdout.splitlines()) == 4
    assert sorted(path.name for path in folder.iterdir()) == FILES
    return folder


def demo_config(*options: Any) -> CfgNode:
    """configs/ice_demo.yml on few people."""
    cfg = get_cfg()
    add_ice_config(cfg)
    cfg.merge_from_file(str(DEMO))
    cfg.merge_from_list([*FEW, *options])
    return cfg


def load(weights: Path, *options: Any) -> MomentumReID:
    model = build_model(demo_config(*options))
    Checkpointer(model).load(str(weights))
    return model.eval()


def unit_features(model: MomentumReID, images: torch.Tensor, encoder: str) -> np.ndarray:
    with torch.no_grad():
        return F.normalize(model.encode(images, encoder)).numpy()


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    """The command, in this process."""
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, arguments)])
    export.main()


def run_onnx(folder: Path, images: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(folder / "encoder.onnx", providers=["CPUExecutionProvider"])
    return session.run(["features"], {"images": images.numpy()})[0]


@pytest.mark.slow
def test_plain_fast_reid_evaluates_to_the_same_figures(
    people: Path, trained: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    market = tmp_path / "Market-1501-v15.09.15"
    for part in ("bounding_box_train", "query", "bounding_box_test"):
        (market / part).mkdir(parents=True)
        for path in people.glob(f"synthetic-people/*/{part}/*.jpg"):
            person = int(path.name[:4]) % 5000  # Market-1501 has none above 1501
            (market / part / f"{person:04d}{path.name[4:]}").symlink_to(path)
    script = [sys.executable, "-c", PLAIN_FAST_REID, str(ROOT / "fastreid_ice"), str(exported / "fastreid.yml")]
    environment = {**os.environ, "FASTREID_DATASETS": str(tmp_path), "PYTHONPATH": ""}
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not found in the checkpoint" not in done.stdout and "Skip loading" not in done.stdout
    architecture, head, ours, figures = json.loads(done.stdout.splitlines()[-1])
    assert (architecture, head, ours) == ("Baseline", "EmbeddingHead", [])

    monkeypatch.setenv("FASTREID_DATASETS", str(people))
    expected = UnsupervisedTrainer.test(demo_config(), load(trained))
    assert {"mAP", "Rank-1", "mINP"} <= set(figures)
    assert figures == pytest.approx({name: expected[name] for name in figures}, abs=1e-3)
    assert 20 < figures["mAP"] < 98, "a metric that shows nothing"


def test_onnx_gives_the_features_of_the_momentum_encoder(exported: Path, trained: Path, crops: torch.Tensor) -> None:
    model = load(trained)
    for batch in (crops[:1], crops[:7]):
        rows = run_onnx(exported, batch)
        assert rows.shape == (len(batch), 128) and rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(rows, unit_features(model, batch, "momentum"), rtol=0, atol=1e-4)
        assert np.abs(rows - unit_features(model, batch, "online")).max() > 1e-3, (
            "the encoders are too similar for this test"
        )


def test_the_online_encoder_where_the_config_evaluates_it(trained: Path, crops: torch.Tensor, tmp_path: Path) -> None:
    online = "TEST.ENCODER", "online"
    export_encoder(demo_config(*online), load(trained, *online), tmp_path)
    expected = unit_features(load(trained), crops[:3], "online")
    np.testing.assert_allclose(run_onnx(tmp_path, crops[:3]), expected, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def crops(people: Path) -> torch.Tensor:
    """The gallery from our loader."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTREID_DATASETS", str(people))
        loader, num_query = build_test_loader(demo_config(), "SyntheticPeople")
        return torch.cat([batch["images"] for batch in loader])[num_query:].float()


def test_the_example_of_the_help_as_it_stands(
    people: Path, exported: Path, trained: Path, crops: torch.Tensor, tmp_path: Path, monkeypatch, capsys
) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(monkeypatch, "--help")
    text = capsys.readouterr().out.partition("most similar ones:\n")[2]
    example = re.findall(r"^    (\S.*)$", text, re.MULTILINE)[:11]
    assert example[0].startswith("from pathlib") and example[10].endswith('save("ranking.png")')
    pictures = sorted(people.glob("synthetic-people/*/bounding_box_test/*.jpg"))
    (tmp_path / "exported").symlink_to(exported)
    (tmp_path / "query.jpg").symlink_to(pictures.pop(40))
    (tmp_path / "gallery").mkdir()
    for number, path in enumerate(pictures):  # in every form, in the same order
        if number % 3:
            (tmp_path / "gallery" / path.with_suffix((".jpg", ".JPG", ".jpeg")[number % 3]).name).symlink_to(path)
        else:
            Image.open(path).save(tmp_path / "gallery" / path.with_suffix(".png").name)
    (tmp_path / "gallery" / "notes.txt").write_text("no picture")
    (tmp_path / "gallery" / ".DS_Store").touch()
    monkeypatch.chdir(tmp_path)
    shown: dict = {}
    exec(compile("\n".join(example), "example.py", "exec"), shown)

    rows = unit_features(load(trained), crops, "momentum")
    order = np.argsort(-np.delete(rows, 40, 0) @ rows[40])
    assert list(shown["ranking"]) == list(1 + order[:10])
    sheet = np.asarray(Image.open("ranking.png"))
    assert sheet.shape == (128, 64 * 11, 3)
    first = [np.asarray(Image.open(path)) for path in ("query.jpg", pictures[order[0]])]
    np.testing.assert_array_equal(sheet[:, :128], np.hstack(first))


NETWORKS = {
    "IBN, generalised mean": {
        "MODEL.BACKBONE.WITH_IBN": True,
        "MODEL.HEADS.POOL_LAYER": "GeneralizedMeanPoolingP",
    },
    "non-local, reduced, no neck": {
        "MODEL.BACKBONE.WITH_NL": True,
        "MODEL.HEADS.EMBEDDING_DIM": 32,
        "MODEL.HEADS.WITH_BNNECK": False,
        "MODEL.HEADS.POOL_LAYER": "GeneralizedMeanPooling",
    },
    "synchronised batch norm": {"MODEL.BACKBONE.NORM": "syncBN", "MODEL.HEADS.NORM": "syncBN"},
}


@pytest.mark.parametrize("what", list(NETWORKS))
def test_other_networks(tmp_path: Path, what: str) -> None:
    resnet = {"MODEL.BACKBONE.NAME": "build_resnet_backbone", "MODEL.BACKBONE.DEPTH": "18x"}
    cfg = small_config(**resnet, **{"MODEL.BACKBONE.FEAT_DIM": 512}, **NETWORKS[what])
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # so that all parts differ from those of a new network
    assert export_encoder(cfg, model, tmp_path) < 1e-4
    assert not [name for name in torch.load(tmp_path / "fastreid.pth")["model"] if "momentum" in name]
    images = 255 * torch.rand(3, 3, 32, 16)
    expected = unit_features(model.eval(), images, "momentum")
    np.testing.assert_allclose(run_onnx(tmp_path, images), expected, rtol=0, atol=1e-4)


def test_plain_config_has_no_key_of_the_plugin_and_can_be_trained_on(tmp_path: Path) -> None:
    cfg = demo_config()
    export_encoder(cfg, load(SOURCE), tmp_path)
    plain = get_cfg()
    plain.merge_from_file(str(tmp_path / "fastreid.yml"))
    assert plain.INPUT.SIZE_TEST == [128, 64] and plain.TEST.METRIC == cfg.TEST.METRIC
    assert plain.MODEL.LOSSES.NAME == ("CrossEntropyLoss",) and plain.OUTPUT_DIR != cfg.OUTPUT_DIR
    plain.MODEL.HEADS.NUM_CLASSES = 5
    model = build_model(plain)
    Checkpointer(model).load(plain.MODEL.WEIGHTS)
    torch.testing.assert_close(model.backbone.state_dict(), load(SOURCE).backbone.state_dict())
    with EventStorage():
        losses = model({"images": 255 * torch.rand(4, 3, 128, 64), "targets": torch.tensor([0, 1, 2, 4])})
    assert list(losses) == ["loss_cls"] and losses["loss_cls"].isfinite()


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--weights", "nowhere.pth"], "MODEL.WEIGHTS: no file 'nowhere.pth'"),
            (["MODEL.WEIGHTS", ""], "no weights to export: give --weights"),
            (["MODEL.BACKBONE.DEPTH", "x0_5", "MODEL.BACKBONE.FEAT_DIM", "256"], "does not fit this model"),
            (["MODEL.META_ARCHITECTURE", "Baseline"], "MODEL.META_ARCHITECTURE must be MomentumReID"),
            (["TEST.ENCODER", "teacher"], "TEST.ENCODER 'teacher' must be 'online' or 'momentum'"),
        ],
    )
    def test_arguments(self, tmp_path: Path, monkeypatch, arguments: list[str], message: str) -> None:
        monkeypatch.chdir(ROOT)
        where = ["--config-file", DEMO, "--output", tmp_path / "exported"]
        with pytest.raises(SystemExit, match=f"^error: .*{message}"):
            run(monkeypatch, *where, *arguments)
        assert not (tmp_path / "exported").exists()

    @pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
    def test_a_missing_package(self, tmp_path: Path, monkeypatch, name: str) -> None:
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(InputError, match=f"^{name} is not installed, .* run `pip install onnx onnxruntime`$"):
            export_encoder(demo_config(), load(SOURCE), tmp_path / "exported")
        assert not (tmp_path / "exported").exists()

    def test_a_folder_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "exported").touch()
        with pytest.raises(InputError, match="cannot write to .*exported: File exists"):
            export_encoder(demo_config(), load(SOURCE), tmp_path / "exported")

    def test_an_encoder_that_cannot_be_exported_leaves_the_earlier_files(self, tmp_path: Path) -> None:
        model = load(SOURCE)
        export_encoder(demo_config(), model, tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert sorted(before) == FILES
        with torch.no_grad():
            model.momentum["heads"].bottleneck[0].weight[0] = torch.nan
        with pytest.raises(InputError, match="not finite: its checkpoint holds NaN"):
            export_encoder(demo_config(), model, tmp_path)
        # A network that counts the images of a batch in Python: the graph is only right for as many as were traced.
        shuffle = {"MODEL.BACKBONE.NAME": "build_shufflenetv2_backbone", "MODEL.BACKBONE.DEPTH": "1.0x"}
        cfg = small_config(**shuffle, **{"MODEL.BACKBONE.FEAT_DIM": 1024})
        with pytest.raises(InputError, match="build_shufflenetv2_backbone has no ONNX graph for batches of any size"):
            export_encoder(cfg, build_model(cfg), tmp_path)
        # A head that differs from the one Baseline builds from the config.
        cfg = demo_config("MODEL.HEADS.WITH_BNNECK", False)
        with pytest.raises(InputError, match="fast-reid's Baseline gives features that differ by"):
            export_encoder(cfg, load(SOURCE), tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
