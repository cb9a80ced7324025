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
from fastreid.config import CfgNode
from fastreid.modeling.backbones import build_backbone
from torch import nn

from ..errors import InputError
from .timm_backbone import is_timm
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
