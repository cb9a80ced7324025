"""Any model of timm as a backbone: ``MODEL.BACKBONE.NAME`` build_timm_backbone, and ``DEPTH`` the name in timm.

Only ``backbone`` imports this module, where a config names such a model, because importing timm takes a second.
"""

from __future__ import annotations

import copy
import difflib
import logging
import os
import textwrap
import urllib.error
import urllib.request
from typing import Any

import timm
import torch
from fastreid.config import CfgNode
from huggingface_hub import constants as hub
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.models import get_pretrained_cfg, load_state_dict
from torch import Tensor, nn

from ..errors import InputError
from . import ics_stem  # noqa: F401  registers its model in timm
from .weights import read_weights

CONNECT_SECONDS = 10

logger = logging.getLogger(f"fastreid.{__name__}")


class TimmBackbone(nn.Module):
    """A timm model without its classifier, whose output is feature maps.

    A convolutional or hierarchical network gives its last map. A network of tokens gives the feature that it was
    pretrained to pool: if that is the mean of the patch tokens, they are arranged on their grid, so that global average
    pooling takes the mean; otherwise, as with the class token of DINO and CLIP, the output is a map of one pixel.

    Parameters on which the output does not depend, such as those of a head, get no gradient.

    Args:
        net: a timm model without classifier, with its weights.
        image_size: height and width of the images.

    Attributes:
        feat_dim: channels of the output.
        pixel_mean, pixel_std: 3 values each, those of the pretraining, on the scale 0..255.
    """

    def __init__(self, net: nn.Module, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.net = net.eval()
        self.pixel_mean = [255 * value for value in net.pretrained_cfg["mean"]]
        self.pixel_std = [255 * value for value in net.pretrained_cfg["std"]]
        images = torch.rand(2, 3, *image_size)
        with torch.no_grad():
            self.layout = self._find_layout(images)
        # A copy in training mode, whose statistics may change: in evaluation mode some networks use cached parameters.
        trial = copy.deepcopy(self).train()
        output = trial(images)
        self.feat_dim = output.shape[1]
        gradients = torch.autograd.grad(output.sum(), list(trial.parameters()), allow_unused=True)
        for parameter, gradient in zip(self.parameters(), gradients, strict=True):
            parameter.requires_grad_(gradient is not None)

    def _find_layout(self, images: Tensor) -> str:
        features = self.net.forward_features(images)
        if isinstance(features, Tensor) and features.ndim == 4:
            return "NCHW" if features.shape[1] == self.net.num_features else "NHWC"
        height, width = getattr(getattr(self.net, "patch_embed", None), "grid_size", (0, 0))
        if isinstance(features, Tensor) and 0 < height * width <= features.shape[1]:
            pooled, mean = self.net.forward_head(features, pre_logits=True), self._on_grid(features).mean((2, 3))
            if pooled.shape == mean.shape and torch.allclose(pooled, mean, rtol=1e-3, atol=1e-4):
                return "grid"
        return "pooled"

    def _on_grid(self, tokens: Tensor) -> Tensor:
        """(B, class and register tokens + h * w, C) to (B, C, h, w)."""
        height, width = self.net.patch_embed.grid_size
        return tokens[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to (B, C, h, w) feature maps."""
        features = self.net.forward_features(images)
        if self.layout == "NCHW":
            return features
        if self.layout == "NHWC":
            return features.permute(0, 3, 1, 2)
        if self.layout == "grid":
            return self._on_grid(features)
        return self.net.forward_head(features, pre_logits=True)[..., None, None]


def create_backbone(cfg: CfgNode) -> TimmBackbone:
    """See ``build_timm_backbone``."""
    node = cfg.MODEL.BACKBONE
    check_name(node.DEPTH)
    try:
        backbone = TimmBackbone(_create(cfg, pretrained=node.PRETRAIN), tuple(cfg.INPUT.SIZE_TRAIN))
    except (AssertionError, RuntimeError) as error:
        raise InputError(
            f"{node.DEPTH} takes no images of INPUT.SIZE_TRAIN {cfg.INPUT.SIZE_TRAIN}: "
            f"{textwrap.shorten(str(error), 200)}"
        ) from error
    except TypeError as error:
        if not node.DROP_PATH:
            raise
        raise InputError(f"MODEL.BACKBONE.DROP_PATH: {node.DEPTH} has no paths to drop; set it to 0") from error
    if get_pretrained_cfg(node.DEPTH).fixed_input_size and list(cfg.INPUT.SIZE_TEST) != list(cfg.INPUT.SIZE_TRAIN):
        raise InputError(
            f"{node.DEPTH} takes images of one size: INPUT.SIZE_TEST {cfg.INPUT.SIZE_TEST} must be INPUT.SIZE_TRAIN "
            f"{cfg.INPUT.SIZE_TRAIN}"
        )
    return backbone


def check_name(name: str) -> None:
    """Raises InputError if timm has no model, or no weights, of this name; the message suggests similar names."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=5, cutoff=0.5)
        raise InputError(
            f"MODEL.BACKBONE.DEPTH {name!r} is no model of timm {timm.__version__}; near it: "
            f"{', '.join(near) or 'none'}"
        )
    if tag and name not in timm.list_pretrained(f"{architecture}.*"):
        known = ", ".join(timm.list_pretrained(f"{architecture}.*")) or "none"
        raise InputError(f"MODEL.BACKBONE.DEPTH {name!r}: timm has no such weights of {architecture}; it has {known}")


def _create(cfg: CfgNode, *, pretrained: bool) -> nn.Module:
    """The model without its classifier. It is loaded as a whole first, so that timm notices what a file lacks."""
    name = cfg.MODEL.BACKBONE.DEPTH
    arguments: dict[str, Any] = {}
    if cfg.MODEL.BACKBONE.DROP_PATH:
        arguments["drop_path_rate"] = cfg.MODEL.BACKBONE.DROP_PATH
    if get_pretrained_cfg(name).fixed_input_size:
        arguments["img_size"] = tuple(cfg.INPUT.SIZE_TRAIN)
    elif cfg.MODEL.BACKBONE.LAST_STRIDE == 1:
        arguments["output_stride"] = 16
    try:
        net = timm.create_model(name, **arguments)
    except (AssertionError, NotImplementedError, TypeError):
        if "output_stride" not in arguments:
            raise
        logger.info("MODEL.BACKBONE.LAST_STRIDE 1 changes nothing: timm offers no other stride for %s", name)
        del arguments["output_stride"]
        net = timm.create_model(name, **arguments)
    net.reset_classifier(0)
    path = cfg.MODEL.BACKBONE.PRETRAIN_PATH
    if not pretrained:
        return net
    if path:
        try:
            net = _from_file(name, path, set(net.state_dict()), arguments)
        except Exception as error:  # errors of torch, safetensors and timm have no other common base
            reason = str(error).partition("\n")[2].strip() or str(error) or type(error).__name__
            raise InputError(
                f"MODEL.BACKBONE.PRETRAIN_PATH {path!r} does not fit build_timm_backbone {name}: "
                f"{textwrap.shorten(reason, 200)}"
            ) from error
    else:
        net = _from_hub(name, arguments)
    net.reset_classifier(0)
    return net


def _from_file(name: str, path: str, needed: set[str], arguments: dict[str, Any]) -> nn.Module:
    """The model with the weights of a file: only ``needed`` if it has them all, whatever its classifier.

    Otherwise timm converts the file as it converts downloads, and also needs its own classifier in it.
    """
    if not path.endswith(".safetensors"):
        read_weights(path)  # its error gives the reason, and not torch's advice to load the file anyway
    weights = load_state_dict(path)
    if "teacher" in weights:  # a checkpoint of DINO: its teacher, a network in "backbone" with a head
        teacher = weights["teacher"]
        weights = {key.partition("backbone.")[2]: value for key, value in teacher.items() if "backbone." in key}
    source: dict[str, Any] = {"state_dict": weights}
    if needed <= set(source["state_dict"]):
        source["state_dict"] = {key: source["state_dict"][key] for key in needed}
        source["num_classes"] = 0
        arguments = arguments | {"num_classes": 0}
    net = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source, **arguments)
    del net.pretrained_cfg["state_dict"]
    return net


def _from_hub(name: str, arguments: dict[str, Any]) -> nn.Module:
    """The model with the weights that timm downloads, or has in its cache."""
    try:
        # If the hub does not answer, its client would try for minutes; when offline, it only reads its cache.
        hub.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE or not _answers(hub.ENDPOINT)
        return timm.create_model(name, pretrained=True, **arguments)
    except LocalEntryNotFoundError as error:
        state = "is not to be asked (HF_HUB_OFFLINE)" if os.environ.get("HF_HUB_OFFLINE") else "does not answer"
        raise OSError(f"{hub.ENDPOINT} {state}, and its cache on this machine does not hold them") from error
    except Exception as error:  # errors of the hub's client have no other common base
        raise OSError(f"{type(error).__name__}: {error}") from error


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
