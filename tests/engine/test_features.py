"""Features of a dataset against one forward pass of each image."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.data.data_utils import read_image
from torch import Tensor, nn

from fastreid_ice.compat.training import mixed_precision
from fastreid_ice.data import TrainingSet, build_feature_loader, build_training_set
from fastreid_ice.data.views import build_test_transform
from fastreid_ice.engine import UnsupervisedTrainer, extract_features


@pytest.fixture
def images(cfg: CfgNode) -> TrainingSet:
    cfg.TEST.IMS_PER_BATCH = 7
    images = build_training_set(cfg)
    return TrainingSet(images.paths[:20], images.known[:20])


@pytest.fixture
def model(cfg: CfgNode) -> nn.Module:
    torch.manual_seed(0)
    return UnsupervisedTrainer.build_model(cfg).train()


def one_by_one(cfg: CfgNode, model: nn.Module, images: TrainingSet, encoder: str, flip: bool) -> Tensor:
    transform = build_test_transform(cfg, "SIZE_TEST")
    model.eval()
    rows = []
    with torch.no_grad():
        for path in images.paths:
            image = transform(read_image(path))[None]
            row = model.encode(image, encoder)
            rows.append((row + model.encode(image.flip(3), encoder)) / 2 if flip else row)
    model.train()
    return F.normalize(torch.cat(rows))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("encoder", ["online", "momentum"])
def test_features_are_those_of_each_image(
    cfg: CfgNode, images: TrainingSet, model: nn.Module, encoder: str, flip: bool
) -> None:
    with torch.no_grad():
        for parameter in model.momentum.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    features, readable = extract_features(model, build_feature_loader(cfg, images), encoder, flip=flip)
    assert model.training and readable.all() and features.dtype == torch.float32
    torch.testing.assert_close(features, one_by_one(cfg, model, images, encoder, flip), atol=1e-5, rtol=1e-4)
    features.mul_(2)  # not inference tensors, which cannot be changed in place


def test_parts_that_fit_the_caches_change_nothing(
    cfg: CfgNode, images: TrainingSet, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = extract_features(model, build_feature_loader(cfg, images), "momentum")
    sizes = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda part, encoder: (sizes.append(len(part)), encode(part, encoder))[1])
    monkeypatch.setattr("fastreid_ice.engine.features.CPU_PIXELS", 7 * 32 * 16 + 1)
    parts, _ = extract_features(model, build_feature_loader(cfg, images), "momentum")
    assert max(sizes) == 7 and sum(sizes) == len(images.paths)
    torch.testing.assert_close(parts, whole)


def test_unreadable_images_have_empty_rows(cfg: CfgNode, images: TrainingSet, model: nn.Module, tmp_path: Path) -> None:
    cfg.DATALOADER.UNREADABLE = "skip"
    images.paths[3] = str(tmp_path / "gone.jpg")
    features, readable = extract_features(model, build_feature_loader(cfg, images), "online")
    assert (~readable).nonzero().tolist() == [[3]] and not features[3].any()
    torch.testing.assert_close(features.norm(dim=1), readable.float())


def test_workers_and_cache_change_nothing(cfg: CfgNode, model: nn.Module) -> None:
    """Twice from the same loader, whose workers keep running."""
    plain = build_feature_loader(cfg, build_training_set(cfg))
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.CACHE = 2, "ram"
    images = build_training_set(cfg)
    cached = build_feature_loader(cfg, images)
    expected, _ = extract_features(model, plain, "online")
    for _ in range(2):
        assert torch.equal(extract_features(model, cached, "online")[0], expected)
    assert images.cache.filled.all()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_mixed_precision_is_close(device: str, cfg: CfgNode, images: TrainingSet, model: nn.Module) -> None:
    lower = mixed_precision(torch.device(device)) is not None
    loader = build_feature_loader(cfg, images)
    full, half = (extract_features(model.to(device), loader, "online", amp=amp)[0] for amp in (False, True))
    assert half.dtype == torch.float32 and (full * half).sum(1).min() > 0.99
    assert torch.equal(full, half) != lower
