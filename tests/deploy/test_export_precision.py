"""Exports in float16 and int8: what they compute with, what they keep, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.modeling import build_model

from fastreid_ice import InputError
from fastreid_ice.commands import export
from fastreid_ice.data import build_feature_loader, build_training_set
from fastreid_ice.deploy import export_onnx
from fastreid_ice.deploy.trackers import TRACKERS
from fastreid_ice.modeling import MomentumReID

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture
def model(cfg: CfgNode) -> MomentumReID:
    torch.manual_seed(0)
    return build_model(cfg).eval()


def crops(cfg: CfgNode) -> torch.Tensor:
    """The training images, 54 drawn people."""
    loader = build_feature_loader(cfg, build_training_set(cfg))
    return torch.cat([batch["images"] for batch in loader]).float()


def run(path: Path, images: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (entry,), (features,) = session.get_inputs(), session.get_outputs()
    assert entry.type == features.type == "tensor(float)" and features.shape[0] == "batch"
    return session.run(None, {"images": images.numpy()})[0]


def weights(path: Path) -> dict[int, int]:
    """Type of a tensor -> bytes of the weights in it."""
    found: dict[int, int] = {}
    for tensor in onnx.load(path).graph.initializer:
        found[tensor.data_type] = found.get(tensor.data_type, 0) + onnx.numpy_helper.to_array(tensor).nbytes
    return found


@pytest.mark.parametrize("tracker", [None, "boxmot"])
@pytest.mark.parametrize(("precision", "kind", "least"), [("float16", "FLOAT16", 0.9999), ("int8", "INT8", 0.98)])
def test_features_and_weights(
    cfg: CfgNode, model: MomentumReID, tmp_path: Path, precision: str, kind: str, least: float, tracker: str | None
) -> None:
    path, cosines = export_onnx(cfg, model, tmp_path, precision=precision, tracker=tracker)
    assert path.name == f"encoder_{tracker}_{precision}.onnx" if tracker else f"encoder_{precision}.onnx"
    assert cosines.min() > least and cosines.min() < 1
    images = crops(cfg)
    with torch.no_grad():
        expected = F.normalize(model(images)).numpy()
    found = run(path, TRACKERS[tracker].of(images) if tracker else images)
    lengths = np.linalg.norm(found, axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-3)  # float16 has 11 bits
    assert ((found * expected).sum(1) / lengths).min() > least
    sizes = weights(path)
    assert sizes[onnx.TensorProto.DataType.Value(kind)] > 0.9 * sum(sizes.values())
    if precision == "int8":
        np.testing.assert_allclose(sorted(cosines), sorted((found * expected).sum(1)[::5]), atol=1e-4)


def test_the_command_names_the_cosine(
    cfg: CfgNode, model: MomentumReID, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    arguments = ["--config-file", tmp_path / "config.yaml", "--weights", tmp_path / "model.pth"]
    export.main([*map(str, arguments), "--precision", "int8", "--output", str(tmp_path / "exported")])
    shown = capsys.readouterr()
    assert "cosine with its own features on 11 training images 0.9" in shown.out and not shown.err
    assert shown.out.endswith(f" at least:\n{tmp_path / 'exported' / 'encoder_int8.onnx'}\n")


class TestRefused:
    def test_training_images_that_are_missing(self, cfg: CfgNode, model: MomentumReID, tmp_path: Path) -> None:
        cfg.merge_from_list(["DATASETS.NAMES", ("UnlabeledFolder",), "DATASETS.ROOT", str(tmp_path / "gone")])
        with pytest.raises(InputError, match="gone"):
            export_onnx(cfg, model, tmp_path / "exported", precision="int8")
        assert not (tmp_path / "exported").exists()

    def test_features_that_overflow(self, cfg: CfgNode, model: MomentumReID, tmp_path: Path) -> None:
        with torch.no_grad():
            model.momentum["backbone"].net.bn1.weight.mul_(1e7)
        with pytest.raises(InputError, match="in float16 the features have a cosine of .* less than 0.9"):
            export_onnx(cfg, model, tmp_path / "exported", precision="float16")
        assert not (tmp_path / "exported").exists()
