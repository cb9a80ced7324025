"""Building backbones, with one clear sentence for each way in which a config or machine does not fit them."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from fastreid.config import CfgNode, get_cfg
from fastreid.modeling.backbones import BACKBONE_REGISTRY, build_backbone
from torch import nn

from ..errors import InputError
from .weights import read_weights

SILENCE_SECONDS = 30


class NoWeights(InputError):
    """The weights of ``MODEL.BACKBONE.PRETRAIN`` cannot be downloaded."""


def build_fitting_backbone(cfg: CfgNode) -> nn.Module:
    """``build_backbone(cfg)``.

    Raises:
        NoWeights: pretrained weights that cannot be downloaded.
        InputError: pretrained weights that do not fit, a wrong ``MODEL.BACKBONE.DEPTH`` or ``FEAT_DIM``, or an
            ``INPUT`` size that is too small.
    """
    node = cfg.MODEL.BACKBONE
    own = node.PRETRAIN and node.PRETRAIN_PATH and not is_timm(cfg)
    weights = {}
    if own:  # read here first, because torch < 2.6, as fast-reid calls it, would run code in the file
        try:
            weights = read_weights(node.PRETRAIN_PATH)
        except InputError as error:
            raise InputError(f"MODEL.BACKBONE.PRETRAIN_PATH: {error}") from error
        if not isinstance(weights, dict):
            raise _no_weights(node)
    try:
        with _no_endless_download():
            backbone = build_backbone(cfg)
    except KeyError as error:
        if error.args != (node.DEPTH,):
            raise
        raise InputError(f"MODEL.BACKBONE.DEPTH {node.DEPTH!r} is none of {node.NAME}'s") from error
    except (ImportError, OSError, RuntimeError) as error:
        if not node.PRETRAIN:
            raise
        reason = " ".join(str(error).strip().splitlines()[:2][-1:]) or type(error).__name__
        reason = textwrap.shorten(reason, 200)
        if node.PRETRAIN_PATH:
            raise InputError(
                f"MODEL.BACKBONE.PRETRAIN_PATH {node.PRETRAIN_PATH!r} does not fit {node.NAME} {node.DEPTH}: {reason}"
            ) from error
        raise NoWeights(
            f"MODEL.BACKBONE.PRETRAIN: the weights of {node.NAME} {node.DEPTH} cannot be downloaded ({reason}); "
            f"get them by other means and set MODEL.BACKBONE.PRETRAIN_PATH"
        ) from error
    # All but the vision transformer expect bare weights, and train from random ones if these are wrapped.
    if own and node.NAME != "build_vit_backbone" and not set(weights) & set(backbone.state_dict()):
        raise _no_weights(node)
    if is_timm(cfg):
        return backbone.train()
    backbone.eval()
    for key in ("SIZE_TEST", "SIZE_TRAIN"):
        try:
            with torch.no_grad():
                channels = backbone(torch.zeros(1, 3, *cfg.INPUT[key])).shape[1]
        except RuntimeError as error:
            if min(cfg.INPUT[key]) >= 32:  # networks accept this size, so the error has another cause
                raise
            raise InputError(
                f"INPUT.{key} {cfg.INPUT[key]} is too small for {node.NAME} {node.DEPTH}: {error}"
            ) from error
    if channels != node.FEAT_DIM:
        raise InputError(
            f"MODEL.BACKBONE.FEAT_DIM {node.FEAT_DIM} does not fit {node.NAME} {node.DEPTH}, which gives {channels} "
            f"channels"
        )
    return backbone.train()


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode) -> nn.Module:
    """The timm model that ``MODEL.BACKBONE.DEPTH`` names, such as "resnet50", "vit_small_patch16_224.dino" (after the
    dot which of its weights) or "vit_small_patch14_dinov2"; or the ViT-S of TransReID-SSL with its convolutional stem,
    "vit_small_patch16_ics". timm has no IBN networks; fast-reid's ResNets do.

    It also reads ``PRETRAIN`` (a download by timm) and ``PRETRAIN_PATH`` (a safetensors or torch file, from which only
    tensors are read; with or without its classifier; of a checkpoint of DINO the teacher); ``DROP_PATH``;
    ``LAST_STRIDE``, where 1 gives maps of a 16th of the image's size by dilation, if timm offers that; and
    ``INPUT.SIZE_TRAIN``, to which grids and position embeddings are fitted.
    MomentumReID determines ``FEAT_DIM`` itself. It sets ``MODEL.PIXEL_MEAN`` and ``PIXEL_STD`` to the values with which
    the model was pretrained, unless they differ from fast-reid's defaults. fast-reid's own meta-architectures take all
    three from the config.

    Raises:
        InputError: no such model, weights in ``PRETRAIN_PATH`` that do not fit, or a size or ``DROP_PATH`` that the
            model cannot take.
        OSError: weights that cannot be downloaded.
    """
    from .timm_backbone import create_backbone  # importing timm takes a second

    return create_backbone(cfg)


def is_timm(cfg: CfgNode) -> bool:
    """Whether the config's backbone is a timm model."""
    return cfg.MODEL.BACKBONE.NAME == "build_timm_backbone"


def with_found_values(cfg: CfgNode, backbone: nn.Module) -> CfgNode:
    """``cfg``; for a timm backbone a copy with its channels and pixel values, see ``build_timm_backbone``."""
    if not is_timm(cfg):
        return cfg
    cfg, default = cfg.clone(), get_cfg()
    cfg.defrost()
    cfg.MODEL.BACKBONE.FEAT_DIM = backbone.feat_dim
    for key, value in {"PIXEL_MEAN": backbone.pixel_mean, "PIXEL_STD": backbone.pixel_std}.items():
        if cfg.MODEL[key] == default.MODEL[key]:
            cfg.MODEL[key] = value
    return cfg


@contextmanager
def _no_endless_download() -> Iterator[None]:
    """Downloads without a time limit of their own, such as torch.hub's, end when nothing arrives for half a minute."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(before or SILENCE_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _no_weights(node: CfgNode) -> InputError:
    return InputError(
        f"MODEL.BACKBONE.PRETRAIN_PATH {node.PRETRAIN_PATH!r} holds no weights of {node.NAME}: none of its "
        f"entries has a name of this backbone (a fast-reid checkpoint goes into MODEL.WEIGHTS)"
    )


def check_compiler() -> None:
    """Checks that ``torch.compile`` finds the compiler that it needs at the first step.

    Raises:
        InputError: there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # the same choice as torch's
    if shutil.which(compiler) is None:
        raise InputError(
            f"MODEL.COMPILE needs a C++ compiler, and there is no {compiler}: install it, name another one in the "
            "variable CXX, or leave MODEL.COMPILE False"
        )
