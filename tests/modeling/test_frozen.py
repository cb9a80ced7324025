"""``MODEL.FROZEN``: modules of both encoders that stay as they are, and cost no backward pass."""

from __future__ import annotations

import pytest
import torch
from fastreid.config import CfgNode
from fastreid.modeling.meta_arch import build_model
from torch import Tensor, nn

from fastreid_ice import InputError
from fastreid_ice.data import build_feature_loader, build_training_set
from fastreid_ice.engine.precise_bn import update_statistics
from support import small_config, train

FIRST = ("backbone.net.conv1", "backbone.net.bn1", "backbone.net.layer1")  # of test_resnet
ENCODERS = ("", "momentum.")


def frozen_model(*names: str) -> nn.Module:
    torch.manual_seed(0)
    return build_model(small_config(MODEL__FROZEN=names))


def belongs(name: str) -> bool:
    return name.startswith(tuple(f"{encoder}{module}." for encoder in ENCODERS for module in FIRST))


def test_a_run_leaves_them_as_they_were(cfg: CfgNode) -> None:
    """Weights and statistics of both encoders, in two epochs with new statistics after each; the others move."""
    cfg.MODEL.FROZEN, cfg.TEST.PRECISE_BN.ENABLED = FIRST, True
    torch.manual_seed(cfg.SEED)
    before = build_model(cfg).state_dict()
    after = train(cfg).model.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    encoders = {name for name in before if name.startswith(("backbone.", "momentum.backbone."))}
    assert len([name for name in encoders if belongs(name)]) > 20
    assert not {name for name in moved if belongs(name)}
    assert {name for name in encoders if not belongs(name)} == moved & encoders


def test_a_resumed_run_equals_the_whole(cfg: CfgNode) -> None:
    cfg.MODEL.FROZEN, folder = FIRST, cfg.OUTPUT_DIR
    weights = []
    for cfg.OUTPUT_DIR, epochs in ((f"{folder}-whole", (2,)), (folder, (1, 2))):
        for cfg.SOLVER.MAX_EPOCH in epochs:
            trainer = train(cfg, resume=epochs[0] < cfg.SOLVER.MAX_EPOCH)
        weights.append(trainer.model.state_dict())
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


def test_no_gradient_is_computed_for_the_first_layers() -> None:
    model, seen = frozen_model(*FIRST).train(), []
    model.backbone.net.layer1.register_forward_hook(lambda *step: seen.append(step[2]))
    model.backbone.net.layer2.register_forward_hook(lambda *step: seen.append(step[2]))
    model.encode(255 * torch.rand(4, 3, 32, 16), "online")
    assert [maps.requires_grad for maps in seen] == [False, True]


def test_they_use_the_statistics_that_they_start_from() -> None:
    """In training as in evaluation, and whatever the mode of the model was before."""
    model, images = frozen_model(*FIRST), 255 * torch.rand(4, 3, 32, 16)
    seen: list[Tensor] = []
    for encoder in ("online", "momentum"):
        model.parts_of(encoder)[0].net.layer1.register_forward_hook(lambda *step: seen.append(step[2].detach()))
        for mode in (True, False, True):
            model.train(mode).encode(images, encoder)
    assert len(seen) == 6
    for maps in seen:
        torch.testing.assert_close(maps, seen[0], rtol=0, atol=0)
    assert model.backbone.net.layer2.training and not model.backbone.net.layer1.training


def test_statistics_computed_anew_are_those_of_the_others(cfg: CfgNode) -> None:
    cfg.MODEL.FROZEN = FIRST
    model = build_model(cfg).train()
    before = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
    loader = build_feature_loader(cfg, build_training_set(cfg), [[3, 50, 8, 20], [1, 30, 44, 12]])
    update_statistics(model, loader, ["online", "momentum"])
    for name, value in model.named_buffers():
        if name in before:
            assert torch.equal(value, before[name]) == belongs(name), name
    assert not model.backbone.net.layer1.training


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("backbone.net.layer9",), "no module 'backbone.net.layer9'; backbone.net consists of backbone.net.conv1, "),
        (("backbone.net.layer1.9.conv",), "; backbone.net.layer1 consists of backbone.net.layer1.0"),
        (("losses",), "MODEL.FROZEN: the encoder has no module 'losses'; backbone consists of backbone.net"),
        (("net.conv1",), "the encoder has no module 'net.conv1'; backbone consists of backbone.net"),
        (("backbone", "heads"), r"MODEL.FROZEN \('backbone', 'heads'\) leaves nothing to train; name fewer modules"),
    ],
)
def test_bad_names_are_named(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        frozen_model(*names)
