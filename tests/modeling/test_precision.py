"""Mixed precision, memory layout and compilation against the plain network in float32."""

from __future__ import annotations

import copy
import shutil
import warnings
from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from fastreid.engine.train_loop import AMPTrainer
from fastreid.modeling.meta_arch import build_model
from fastreid.utils.events import EventStorage
from torch import Tensor, nn

from fastreid_ice import InputError
from fastreid_ice.core import Clusters, ImageTable
from fastreid_ice.losses import build_losses
from fastreid_ice.modeling import MomentumReID, ProxyHead
from support import osnet_config, small_config, two_layers

RESNET = {
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.BACKBONE.DEPTH": "18x",
    "MODEL.BACKBONE.FEAT_DIM": 512,
}


def model_and_batch(**settings: object) -> tuple[MomentumReID, dict[str, Tensor]]:
    """A model in training mode with filled memories, always with the same weights; and 8 images."""
    cfg = osnet_config(**settings)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    fill_memories(model, cfg.MODEL.BACKBONE.FEAT_DIM)
    ids = torch.arange(8)
    views = {view: 255 * torch.rand(8, 3, 32, 16) for view in ("online", "momentum", "momentum_weak")}
    return model, views | {"targets": ids // 4, "camids": ids % 2, "indices": ids}


def fill_memories(model: MomentumReID, dim: int) -> None:
    ids = torch.arange(24)
    model.begin_epoch(Clusters(ids // 6, F.normalize(torch.randn(24, dim)), ImageTable(ids % 2)))


def losses_and_gradients(model: MomentumReID, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    losses = model(batch)
    sum(losses.values()).backward()
    parameters = chain(model.backbone.parameters(), model.heads.parameters())
    gradients = [parameter.grad.flatten() for parameter in parameters if parameter.grad is not None]
    return {name: loss.detach() for name, loss in losses.items()}, torch.cat(gradients)


class TestBfloat16:
    def test_close_to_float32(self) -> None:
        """Each loss within 2 %, and the gradient in the same direction; bfloat16 has 8 bits of precision."""
        model, batch = model_and_batch(**RESNET)
        other = copy.deepcopy(model)
        expected, gradient = losses_and_gradients(model, batch)
        with torch.autocast("cpu", torch.bfloat16):
            found, half_gradient = losses_and_gradients(other, batch)
        for name, loss in expected.items():
            torch.testing.assert_close(found[name], loss, rtol=0.02, atol=1e-3)
        assert F.cosine_similarity(half_gradient, gradient, dim=0) > 0.9
        assert not torch.equal(half_gradient, gradient)

    def test_the_encoder_computes_in_it_and_the_losses_do_not(self) -> None:
        model, batch = model_and_batch()
        seen = []
        model.backbone.register_forward_hook(lambda *call: seen.append(call[-1].dtype))
        model.momentum["backbone"].register_forward_hook(lambda *call: seen.append(call[-1].dtype))
        for term in model.terms:
            term.register_forward_pre_hook(
                lambda _, args: seen.append((args[0].online.dtype, torch.is_autocast_enabled("cpu")))
            )
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(batch)
        assert seen == [torch.bfloat16] * 4 + [(torch.float32, False)] * 4
        assert all(loss.dtype == torch.float32 for loss in losses.values())


class TestAMPTrainer:
    def test_gives_no_warnings(self, caplog: pytest.LogCaptureFixture) -> None:
        """And calls nothing that torch deprecates; on this CPU in bfloat16 if it has it."""
        model, batch = model_and_batch()
        before = copy.deepcopy(model.backbone.state_dict())
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        with warnings.catch_warnings(), EventStorage() as storage:
            warnings.simplefilter("error")
            trainer = AMPTrainer(model, [batch], optimizer, None)
            trainer.iter = 0
            trainer.run_step()
        assert trainer.amp_type in (torch.bfloat16, None) and not trainer.grad_scaler.is_enabled()
        assert type(trainer.grad_scaler) is torch.amp.GradScaler
        assert "total_loss" in storage.latest()
        assert any(not torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())

    @pytest.mark.parametrize(("scale", "steps"), [(2.0**16, True), (2.0**127, False)], ids=["fits", "overflows"])
    def test_gradients_are_scaled_for_float16(self, scale: float, steps: bool) -> None:
        """By a power of two, which is exact: the step is the same, or skipped if gradients overflow."""
        model, batch = model_and_batch()
        before, after = copy.deepcopy(model.backbone.state_dict()), []
        for scaler in (None, torch.amp.GradScaler("cpu", init_scale=scale)):
            copied = copy.deepcopy(model)
            trainer = AMPTrainer(copied, [batch], torch.optim.SGD(copied.backbone.parameters(), lr=0.01), None, scaler)
            trainer.iter = 0
            with EventStorage():
                trainer.run_step()
            after.append(copied.backbone)
        assert trainer.grad_scaler.get_scale() == (scale if steps else scale / 2)
        for (name, weight), expected in zip(after[1].named_parameters(), after[0].parameters(), strict=True):
            torch.testing.assert_close(weight, expected if steps else before[name], rtol=1e-5, atol=1e-7)

    @pytest.mark.gpu
    def test_follows_float32_on_a_gpu(self) -> None:
        model, batch = model_and_batch(**RESNET)
        model.cuda()
        found = []
        for amp in (False, True):
            copied = copy.deepcopy(model)
            trainer = AMPTrainer(copied, [batch], torch.optim.SGD([*copied.backbone.parameters()], lr=0.01), None)
            with torch.autocast("cuda", trainer.amp_type, enabled=amp):
                found.append(losses_and_gradients(copied, batch))
        for name, loss in found[0][0].items():
            torch.testing.assert_close(found[1][0][name], loss, rtol=0.02, atol=1e-3)
        assert F.cosine_similarity(found[0][1], found[1][1], dim=0) > 0.9


class TestLayout:
    def test_channels_are_innermost(self) -> None:
        """In weights of both encoders, and throughout the network."""
        model, batch = model_and_batch(**RESNET)
        outputs = []
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
                module.register_forward_hook(lambda *call: outputs.append(call[-1]))
        model(batch)
        weights = [weight for weight in model.parameters() if weight.dim() == 4]
        assert len(weights) == 2 * 20 and len(outputs) > 100
        assert all(each.is_contiguous(memory_format=torch.channels_last) for each in (*weights, *outputs))

    def test_gives_what_the_other_layout_gives(self) -> None:
        model, batch = model_and_batch(**RESNET)
        images = (batch["online"] - model.pixel_mean) / model.pixel_std
        plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
        expected = plain.heads(plain.backbone(images))
        torch.testing.assert_close(model.encode(batch["online"], "online"), expected, rtol=1e-3, atol=1e-4)


class TestCompile:
    @pytest.mark.slow
    @pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
    @pytest.mark.parametrize(
        ("precision", "bn_splits", "rtol", "atol"),
        [(torch.float32, 1, 1e-4, 1e-5), (torch.bfloat16, 2, 0.02, 0.01)],
        ids=["float32", "bfloat16 on parts of the batch"],
    )
    def test_changes_neither_results_nor_names(
        self, precision: torch.dtype, bn_splits: int, rtol: float, atol: float
    ) -> None:
        """On two layers, against float32 without compilation: a step, then evaluation, which is not compiled."""
        torch._dynamo.reset()
        plain = small_model(compiled=False, bn_splits=bn_splits)
        compiled = small_model(compiled=True, bn_splits=bn_splits)
        assert compiled.state_dict().keys() == plain.state_dict().keys()
        _, batch = model_and_batch()
        stats = torch._dynamo.utils.counters["stats"]
        before = stats["unique_graphs"]
        torch.manual_seed(1)  # orders the shuffled momentum batches
        expected, gradient = losses_and_gradients(plain, batch)
        torch.manual_seed(1)
        # The flags of the CPU are trusted; otherwise a program is compiled and started for each vector extension of it.
        trusting = torch._inductor.config.patch({"cpp.vec_isa_ok": True})
        with trusting, torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            found, compiled_gradient = losses_and_gradients(compiled, batch)
        assert stats["unique_graphs"] >= before + 2, "both encoders were compiled"
        torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
        assert (compiled_gradient - gradient).norm() < 10 * rtol * gradient.norm()
        torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), rtol=rtol, atol=atol)
        assert not torch._dynamo.utils.counters["graph_break"]
        graphs = stats["unique_graphs"]
        images = batch["online"][:5]
        for encoder in ("online", "momentum"):
            rows = compiled.eval().encode(images, encoder)
            torch.testing.assert_close(rows, plain.eval().encode(images, encoder), rtol=10 * rtol, atol=10 * atol)
        assert stats["unique_graphs"] == graphs

    def test_without_a_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        with pytest.raises(
            InputError, match="MODEL.COMPILE needs a C\\+\\+ compiler, and there is no no-such-compiler"
        ):
            build_model(small_config(**{"MODEL.COMPILE": True}))
        assert not small_config().MODEL.COMPILE


def small_model(*, compiled: bool, bn_splits: int) -> MomentumReID:
    torch.manual_seed(0)
    model = MomentumReID(
        backbone=two_layers(),
        heads=ProxyHead(feat_dim=16, embedding_dim=0, pool_type="GlobalAvgPool", with_bnneck=True, norm_type="BN"),
        losses=build_losses(small_config()),
        pixel_mean=[120.0] * 3,
        pixel_std=[60.0] * 3,
        compiled=compiled,
        bn_splits=bn_splits,
    )
    fill_memories(model, 16)
    return model
