"""timm models as backbones: their output, the weights they start from, and that all of training works with them."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from fastreid.config import CfgNode, get_cfg
from fastreid.modeling.meta_arch import build_model
from torch import Tensor, nn

from fastreid_ice import InputError, add_ice_config
from fastreid_ice.core import Clusters, ImageTable
from fastreid_ice.deploy.export import export_encoder
from fastreid_ice.engine import check_config
from fastreid_ice.modeling import MomentumReID, build_timm_backbone
from fastreid_ice.modeling.batch_norm import split_batch_norms
from fastreid_ice.modeling.timm_backbone import TimmBackbone
from support import ROOT, SMALL, osnet_config, small_config, train

CONV, TOKENS = "test_resnet.r160_in1k", "test_vit.r160_in1k"
# Of 64 x 32 images: C, h, w.
FAMILIES = {
    CONV: (96, 4, 2),
    "test_convnext": (64, 4, 2),
    "test_efficientnet": (256, 4, 2),
    "mobilenetv3_small_050": (288, 2, 1),  # no other stride
    "mambaout_femto": (288, 2, 1),  # channels last
    "vit_small_patch16_ics": (384, 1, 1),  # convolutional stem
    TOKENS: (64, 1, 1),  # class token
    "test_vit3": (96, 1, 1),  # attention
    "levit_128s": (384, 1, 1),  # caches values computed from its parameters in evaluation mode
}


def config(name: str = CONV, size: tuple[int, int] = (64, 32), **changes: Any) -> CfgNode:
    sizes = {"INPUT__SIZE_TRAIN": list(size), "INPUT__SIZE_TEST": list(size)}
    return small_config(MODEL__BACKBONE__NAME="build_timm_backbone", MODEL__BACKBONE__DEPTH=name, **(sizes | changes))


def pretrained(path: Path, name: str = CONV, **changes: Any) -> CfgNode:
    return config(name, MODEL__BACKBONE__PRETRAIN=True, MODEL__BACKBONE__PRETRAIN_PATH=str(path), **changes)


def timm_model(name: str, **arguments: Any) -> nn.Module:
    """timm's own model, with statistics and affine parameters unlike those of a new model."""
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments).eval()
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.01 * torch.rand_like(value))
    return model


def images(size: tuple[int, int] = (64, 32), number: int = 8) -> Tensor:
    return 255 * torch.rand(number, 3, *size, generator=torch.Generator().manual_seed(0))


def batch(number: int = 8) -> dict[str, Tensor]:
    ids = torch.arange(number)
    views = {view: images(number=number) for view in ("online", "momentum", "momentum_weak")}
    return views | {"targets": ids // 4, "camids": ids % 2, "indices": ids}


def train_step(model: MomentumReID) -> dict[str, Tensor]:
    """One step of SGD; returns its losses."""
    dim = model.eval()(images(number=1)).shape[1]
    model.train()
    ids = torch.arange(24)
    model.begin_epoch(Clusters(ids // 6, torch.randn(24, dim), ImageTable(ids % 2)))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = model(batch())
    sum(losses.values()).backward()
    optimizer.step()
    model.after_step()
    return losses


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_family_trains(name: str) -> None:
    """FEAT_DIM is found, and every parameter that requires a gradient gets one, as several processes need."""
    torch.manual_seed(0)
    model = build_model(config(name))
    with torch.no_grad():
        assert model.eval().backbone(images() / 255).shape == (8, *FAMILIES[name])
    before = copy.deepcopy(model)
    assert all(loss.isfinite() for loss in train_step(model).values())
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert len(trained) > 0.8 * len(list(model.backbone.parameters()))
    assert not [key for key, parameter in trained.items() if parameter.grad is None]
    for key, parameter in model.backbone.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(
                model.momentum["backbone"].get_parameter(key),
                0.9 * before.backbone.get_parameter(key) + 0.1 * parameter,
            )


def test_tokens_that_are_averaged_are_laid_out_on_their_grid() -> None:
    net = timm.create_model("test_vit", img_size=(64, 32), global_pool="avg", fc_norm=False, num_classes=0)
    backbone = TimmBackbone(net, (64, 32))
    maps = backbone(images() / 255)
    assert backbone.layout == "grid" and maps.shape == (8, 64, 4, 2)
    torch.testing.assert_close(maps.mean((2, 3)), net(images() / 255))
    tokens = net.forward_features(images() / 255)[:, net.num_prefix_tokens :]
    assert torch.equal(maps[:, :, 1, 0], tokens[:, 2]), "row by row"


def test_last_stride() -> None:
    for last_stride, size in {1: (16, 8), 2: (8, 4)}.items():
        backbone = build_timm_backbone(config("mobilenetv2_050", (256, 128), MODEL__BACKBONE__LAST_STRIDE=last_stride))
        assert backbone(torch.zeros(1, 3, 256, 128)).shape[2:] == size


def test_a_vision_transformer_on_a_tall_grid(tmp_path: Path) -> None:
    """The position embedding of square images is resized to 256 x 128, as in timm."""
    square = timm_model(TOKENS)
    torch.save(square.state_dict(), tmp_path / "square.pth")
    cfg = pretrained(tmp_path / "square.pth", TOKENS, INPUT__SIZE_TRAIN=[256, 128], INPUT__SIZE_TEST=[256, 128])
    backbone = build_timm_backbone(cfg).eval()
    assert backbone.net.patch_embed.grid_size == (16, 8)
    square.set_input_size((256, 128))
    expected = square.forward_head(square.forward_features(images((256, 128)) / 255), pre_logits=True)
    torch.testing.assert_close(backbone(images((256, 128)) / 255)[..., 0, 0], expected)


@pytest.mark.parametrize("name", [CONV, TOKENS, "test_convnext"])
@pytest.mark.parametrize("classes", [1000, 7, 0])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_file(tmp_path: Path, name: str, classes: int, suffix: str) -> None:
    """With any classifier, or none."""
    size = {"img_size": (64, 32)} if name == TOKENS else {"output_stride": 16}
    original, path = timm_model(name, num_classes=classes, **size), tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": original.state_dict()}, path)
    else:
        safetensors.torch.save_file(original.state_dict(), path)
    model = build_model(pretrained(path, name)).eval()
    mean, std = (torch.tensor(original.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    normalised = (images() / 255 - mean) / std
    expected = original.forward_features(normalised)
    if name == TOKENS:
        expected = expected[:, 0, :, None, None]
    for backbone in (model.backbone, model.momentum["backbone"]):
        torch.testing.assert_close(backbone(normalised), expected)
    pooled = model.heads(expected)
    torch.testing.assert_close(model(images()), pooled, rtol=1e-4, atol=1e-5)
    assert "state_dict" not in model.backbone.net.pretrained_cfg


class TestPublishedWeights:
    """Files with the layout of published weights, with names and shapes as there and random values."""

    @pytest.mark.parametrize(
        ("name", "what"),
        [
            ("vit_small_patch16_224.dino", "converted"),
            ("vit_small_patch16_224.dino", "checkpoint"),
            ("vit_small_patch16_ics", "converted"),
            ("vit_small_patch16_ics", "checkpoint of several processes"),  # these wrap a teacher with batch norm
        ],
    )
    def test_of_transreid_ssl(self, tmp_path: Path, name: str, what: str) -> None:
        """DINO on images of 256 x 128: the checkpoint of its run, or the teacher's backbone alone."""
        original = timm_model(name, img_size=(256, 128), num_classes=0)
        weights = original.state_dict()
        assert weights["pos_embed"].shape == (1, 1 + 16 * 8, 384)
        if what != "converted":
            prefix = "module." if what == "checkpoint of several processes" else ""
            teacher = {f"{prefix}backbone.{key}": value for key, value in weights.items()}
            teacher[f"{prefix}head.last_layer.weight_v"] = torch.zeros(8, 4)
            student = {key: torch.zeros_like(value) for key, value in teacher.items()}
            args = argparse.Namespace(arch="vit_small", height=256)
            weights = {"student": student, "teacher": teacher, "epoch": 100, "args": args}
        torch.save(weights, tmp_path / "vit_small_cfs_lup.pth")
        size = {"INPUT__SIZE_TRAIN": [256, 128], "INPUT__SIZE_TEST": [256, 128]}
        backbone = build_timm_backbone(pretrained(tmp_path / "vit_small_cfs_lup.pth", name, **size))
        torch.testing.assert_close(backbone.net.state_dict(), original.state_dict(), rtol=0, atol=0)
        assert backbone.layout == "pooled"
        sample = images((256, 128), 2) / 255
        torch.testing.assert_close(backbone(sample)[..., 0, 0], original.forward_features(sample)[:, 0])

    def test_of_clip(self, tmp_path: Path) -> None:
        """The state dict of OpenAI's ViT-B/16: half precision, with the text encoder, for square images."""
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return (0.02 * torch.randn(shape, generator=generator)).half()

        weights = {
            "visual.class_embedding": draw(768),
            "visual.positional_embedding": draw(1 + 14 * 14, 768),
            "visual.proj": draw(768, 512),
            "visual.conv1.weight": draw(768, 3, 16, 16),
            "positional_embedding": draw(77, 512),
            "text_projection": draw(512, 512),
            "logit_scale": draw(),
            "input_resolution": torch.tensor(224),
            "token_embedding.weight": draw(16, 512),
            "transformer.resblocks.0.ln_1.weight": draw(512),
            "ln_final.weight": draw(512),
        }
        for norm in ("ln_pre", "ln_post", *(f"transformer.resblocks.{i}.ln_{k}" for i in range(12) for k in (1, 2))):
            weights |= {f"visual.{norm}.weight": 1 + draw(768), f"visual.{norm}.bias": draw(768)}
        for block in (f"visual.transformer.resblocks.{i}" for i in range(12)):
            weights |= {
                f"{block}.attn.in_proj_weight": draw(3 * 768, 768),
                f"{block}.attn.in_proj_bias": draw(3 * 768),
                f"{block}.attn.out_proj.weight": draw(768, 768),
                f"{block}.attn.out_proj.bias": draw(768),
                f"{block}.mlp.c_fc.weight": draw(4 * 768, 768),
                f"{block}.mlp.c_fc.bias": draw(4 * 768),
                f"{block}.mlp.c_proj.weight": draw(768, 4 * 768),
                f"{block}.mlp.c_proj.bias": draw(768),
            }
        torch.save(weights, tmp_path / "clip.pth")
        backbone = build_timm_backbone(
            pretrained(tmp_path / "clip.pth", "vit_base_patch16_clip_quickgelu_224.openai")
        ).eval()
        loaded = backbone.net.state_dict()
        for ours, theirs in {
            "cls_token": "class_embedding",
            "patch_embed.proj.weight": "conv1.weight",
            "norm_pre.bias": "ln_pre.bias",
            "norm.weight": "ln_post.weight",
            "blocks.11.attn.qkv.weight": "transformer.resblocks.11.attn.in_proj_weight",
            "blocks.11.mlp.fc2.bias": "transformer.resblocks.11.mlp.c_proj.bias",
        }.items():
            assert torch.equal(loaded[ours].squeeze(), weights[f"visual.{theirs}"].float()), ours
        assert loaded["pos_embed"].shape == (1, 1 + 4 * 2, 768), "resized to 64 x 32"
        assert backbone(images() / 255).shape == (8, 768, 1, 1) and not any("head" in key for key in loaded)

    def test_a_torchscript_archive(self, tmp_path: Path) -> None:
        """OpenAI publishes CLIP as one, with code; its state dict is to be saved first."""
        torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "ViT-B-16.pt"))
        with pytest.raises(InputError, match=r"ViT-B-16.pt: it is a TorchScript archive.*save its state_dict\(\)"):
            build_timm_backbone(pretrained(tmp_path / "ViT-B-16.pt", TOKENS))


class TestDropPath:
    def test_grows_from_block_to_block_in_training_alone(self) -> None:
        backbone = build_timm_backbone(config(TOKENS, MODEL__BACKBONE__DROP_PATH=0.3))
        rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in backbone.net.blocks]
        torch.testing.assert_close(torch.tensor(rates), torch.linspace(0, 0.3, len(rates)))
        for training in (True, False):
            backbone.train(training)
            assert torch.equal(backbone(images() / 255), backbone(images() / 255)) is not training

    def test_is_off_by_default(self) -> None:
        backbone = build_timm_backbone(config(TOKENS)).train()
        assert torch.equal(backbone(images() / 255), backbone(images() / 255))

    def test_values_and_networks_that_cannot_have_it(self) -> None:
        with pytest.raises(InputError, match="MODEL.BACKBONE.DROP_PATH 1.0 must be at least 0 and below 1"):
            check_config(config(TOKENS, MODEL__BACKBONE__DROP_PATH=1.0))
        with pytest.raises(InputError, match="MODEL.BACKBONE.DROP_PATH: densenet121 has no paths to drop; set it to 0"):
            build_timm_backbone(config("densenet121", MODEL__BACKBONE__DROP_PATH=0.1))


class TestNormalisation:
    def test_is_that_of_the_pretraining(self) -> None:
        model = build_model(config(TOKENS))
        assert model.pixel_mean.flatten().tolist() == model.pixel_std.flatten().tolist() == [127.5] * 3
        clip = build_model(config("vit_xsmall_patch16_clip_224"))
        torch.testing.assert_close(clip.pixel_mean.flatten(), 255 * torch.tensor([0.48145466, 0.4578275, 0.40821073]))

    def test_can_be_set(self) -> None:
        model = build_model(config(TOKENS, MODEL__PIXEL_MEAN=[1.0, 2.0, 3.0]))
        assert model.pixel_mean.flatten().tolist() == [1, 2, 3] and model.pixel_std.flatten().tolist() == [127.5] * 3

    def test_of_other_backbones_is_the_config_s(self) -> None:
        torch.testing.assert_close(
            build_model(osnet_config()).pixel_mean.flatten(), torch.tensor(get_cfg().MODEL.PIXEL_MEAN)
        )


class TestBadInput:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("resnet_18", "'resnet_18' is no model of timm [0-9.]+; near it: resnet18"),
            ("x1_0", "'x1_0' is no model of timm"),
            ("resnet18.mine", "timm has no such weights of resnet18; it has resnet18.a1_in1k, "),
        ],
    )
    def test_names(self, name: str, message: str) -> None:
        for use in (check_config, build_model):
            with pytest.raises(InputError, match=f"^MODEL.BACKBONE.DEPTH .*{message}"):
                use(config(name))

    def test_sizes(self) -> None:
        with pytest.raises(InputError, match=r"crossvit_9_240 takes no images of INPUT.SIZE_TRAIN \[64, 32\]: "):
            build_model(config("crossvit_9_240"))
        with pytest.raises(InputError, match=r"INPUT.SIZE_TEST \[32, 32\] must be INPUT.SIZE_TRAIN \[64, 32\]"):
            build_model(config(TOKENS, INPUT__SIZE_TEST=[32, 32]))

    @pytest.mark.parametrize("what", ["another network", "a part", "a list", "no file of tensors", "code"])
    def test_weights_that_do_not_fit(self, tmp_path: Path, what: str) -> None:
        path = tmp_path / ("w.safetensors" if what == "no file of tensors" else "w.pth")
        weights = timm_model(CONV).state_dict()
        del weights["layer4.0.conv1.weight"]
        contents = {
            "another network": timm_model("resnet18").state_dict(),
            "a part": weights,
            "a list": [1],
            "code": {"conv1.weight": Path("x")},
        }
        torch.save(contents.get(what), path)
        with pytest.raises(
            InputError, match="^MODEL.BACKBONE.PRETRAIN_PATH .*w.* does not fit build_timm_backbone test_resnet"
        ) as error:
            build_model(pretrained(path))
        assert "\n" not in str(error.value) and len(str(error.value)) < 500
        if what == "a part":
            assert 'Missing key(s) in state_dict: "layer4.0.conv1.weight"' in str(error.value)


class TestBatchNormSplits:
    def test_parts_are_normalised_apart_and_activated(self) -> None:
        """timm's batch norm includes the activation; the output of a part is that for only this part."""
        whole = build_timm_backbone(config("test_efficientnet")).train()
        split, parts = copy.deepcopy(whole), copy.deepcopy(whole)
        split_batch_norms(split, 2)
        expected = torch.cat([parts(part) for part in (images() / 255).chunk(2)])
        torch.testing.assert_close(split(images() / 255), expected)
        first = copy.deepcopy(whole)
        first((images() / 255)[:4])
        torch.testing.assert_close(split.state_dict(), first.state_dict())
        torch.testing.assert_close(split.eval()(images() / 255), first.eval()(images() / 255))

    def test_a_batch_norm_of_its_own_kind_is_refused(self) -> None:
        class Odd(nn.BatchNorm2d):
            def forward(self, features: Tensor) -> Tensor:
                return 2 * super().forward(features)

        with pytest.raises(InputError, match="MODEL.BN_SPLITS cannot split a Odd of this backbone: set it to 1"):
            split_batch_norms(nn.Sequential(Odd(3)), 2)


@pytest.mark.parametrize("name", [CONV, "test_efficientnet", TOKENS])
def test_export(tmp_path: Path, name: str) -> None:
    """Only to ONNX; the files for fast-reid of an earlier export of another network are removed."""
    for left in ("fastreid.pth", "fastreid.yml"):
        (tmp_path / left).touch()
    pytest.importorskip("onnxruntime")
    cfg = config(name)
    assert export_encoder(cfg, build_model(cfg), tmp_path) < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.onnx"]


@pytest.mark.parametrize("name", ["test_efficientnet", TOKENS])
def test_bfloat16_is_near_float32(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(config(name)).eval()
    with torch.no_grad():
        exact = model(images())
        with torch.autocast("cpu", torch.bfloat16):
            near = model(images())
    assert near.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact, near).min() > 0.99


@pytest.mark.parametrize("name", ["vit", "ics"])
@pytest.mark.parametrize("data", ["market", "msmt17"])
def test_the_recipes_of_vision_transformers_train(tmp_path: Path, name: str, data: str) -> None:
    """On few drawn people, with images of two patches; all else is the recipe's."""
    cfg = get_cfg()
    add_ice_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs" / f"cluster_contrast_{name}_{data}.yml"))
    changes = {key: value for key, value in SMALL.items() if not key.startswith("MODEL.BACKBONE.")}
    changes |= {"MODEL.BACKBONE.PRETRAIN": False, "SOLVER.MAX_EPOCH": 1, "OUTPUT_DIR": str(tmp_path)}
    cfg.merge_from_list([part for item in changes.items() for part in item])
    check_config(cfg)
    trainer = train(cfg)
    assert trainer.iter == 2 and trainer.storage.latest()["total_loss"][0] > 0
    backbone = trainer.model.backbone
    assert sum(parameter.numel() for parameter in backbone.parameters()) > 21e6, "the whole network"
    assert backbone.net.blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)


@pytest.mark.parametrize("name", [CONV, TOKENS])
def test_training_and_resuming(datasets_root: Path, tmp_path: Path, name: str) -> None:
    """Extraction, clustering, evaluation and checkpoints, from a file of weights, on a folder of crops."""
    torch.save(timm_model(name).state_dict(), tmp_path / "weights.pth")
    cfg = pretrained(
        tmp_path / "weights.pth",
        name,
        DATASETS__NAMES=("UnlabeledFolder",),
        DATASETS__TESTS=(),
        DATASETS__ROOT=str(next(datasets_root.rglob("bounding_box_train"))),
        MODEL__LOSSES__NAME=("ClusterProxyLoss", "HardInstanceLoss", "SoftConsistencyLoss"),
        SOLVER__MAX_EPOCH=1,
        OUTPUT_DIR=str(tmp_path / "run"),
    )
    first = train(cfg)
    cfg.SOLVER.MAX_EPOCH = 2
    second = train(cfg, resume=True)
    assert (first.iter, second.start_iter) == (2, 2) and second.storage.latest()["total_loss"][0] > 0
    assert (tmp_path / "run" / "model_final.pth").is_file()
