"""What lower precisions keep: the metrics are those of the network, and the table has a row for each precision."""

from __future__ import annotations

from argparse import ArgumentError, Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from fastreid.config import CfgNode
from PIL import Image

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from fastreid.modeling import build_model

from benchmarks import precision
from fastreid_ice.engine import UnsupervisedTrainer


def test_metrics_are_those_of_the_network(cfg: CfgNode, capsys: pytest.CaptureFixture) -> None:
    """Also of crops resized as trackers do: drawn people are resized to a quarter of their height and width."""
    precision.report("Title", cfg, Namespace(threads=1, repeats=1))
    table = capsys.readouterr().out.partition("Title, 32 x 16")[2]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["", "float32", "float16", "int8", precision.RESIZED]

    torch.manual_seed(0)
    model = build_model(cfg)
    truth = UnsupervisedTrainer.test(cfg, model.eval())
    assert rows[1][1:3] == [f"{truth[name]:.1f}" for name in ("mAP", "Rank-1")]
    kept = [float(row[1]) for row in rows[1:]]
    assert kept == pytest.approx([kept[0]] * 4, abs=15) and len(set(kept)) > 1
    ratios = [(float(row[5]), float(row[7])) for row in rows[1:4]]
    assert ratios[0] == (1, 1) and all(ratio > 0 for pair in ratios for ratio in pair)


def test_resizing_takes_the_two_nearest_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 4, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    np.testing.assert_array_equal(precision.bilinear(image, (8, 4))[0].permute(1, 2, 0).numpy(), pixels)
    small = precision.bilinear(image, (2, 1))  # between rows 1 and 2, rows 5 and 6, and columns 1 and 2
    expected = [pixels[row : row + 2, 1:3].astype(float).mean((0, 1)) for row in (1, 5)]
    np.testing.assert_allclose(small[0, :, :, 0].T.numpy(), expected, atol=1e-4)


def test_crops_of_the_size_of_the_input_need_no_resizing(cfg: CfgNode) -> None:
    rows = {size: (mean, lowest) for size, mean, lowest in precision.resizing(cfg)}
    assert list(rows) == ["16 x 8", "32 x 16", "64 x 32", "96 x 48", "128 x 64"]
    assert rows.pop("32 x 16") == pytest.approx((1, 1), abs=1e-6)
    assert all(0.5 < lowest < mean < 1 for mean, lowest in rows.values())


def test_networks_without_training_are_measured_too(cfg: CfgNode, tmp_path: Path) -> None:
    files = precision.untrained(cfg, tmp_path)
    sessions = {name: precision.session(path, 1) for name, path in files.items()}
    images = 255 * torch.rand(4, 3, 32, 16)
    rows = {name: precision.features(encoder, images) for name, encoder in sessions.items()}
    assert list(rows) == ["float32", "float16", "int8"]
    for row in rows.values():
        torch.testing.assert_close(row.norm(dim=1), torch.ones(4), rtol=0, atol=1e-3)
    times = precision.latencies(sessions, (32, 16), 1)
    assert all(list(own) == [1, 32] and min(own.values()) > 0 for own in times.values())


def test_files_that_are_missing() -> None:
    for name in ("weights", "mobilenet"):
        given = Namespace(repeats=1, weights=None, mobilenet=None)
        setattr(given, name, Path("nowhere.pth"))
        with pytest.raises(ArgumentError, match=f"--{name}: no file 'nowhere.pth'"):
            precision.check(given)
