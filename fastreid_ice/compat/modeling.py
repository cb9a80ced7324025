"""Models: their inputs, and the files of two backbones."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import fastreid.modeling.backbones.regnet.config as regnet_config
import fastreid.modeling.backbones.resnet as resnet
import fastreid.modeling.backbones.resnext as resnext
import fastreid.modeling.meta_arch as meta_arch
import torch
from fastreid.modeling.meta_arch.mgn import MGN
from torch import nn

from ._registry import patch, replace

_build_model = meta_arch.build_model


@patch
def inputs_to_device() -> None:
    """Baseline expects its batch on the model's device, since DataLoaderX always put it on the GPU of the process.
    Every model that is built from a config moves its inputs. Until fastreid's models or loaders follow MODEL.DEVICE.
    """
    replace(_build_model, build_model)


@patch
def preprocess_out_of_place() -> None:
    """preprocess_image of Baseline and MGN normalises the batch in place: a second forward pass of the same batch, as
    with TEST.FLIP, sees images that are normalised twice.

    Until they normalise a copy.
    """
    for cls in (meta_arch.Baseline, MGN):
        cls.preprocess_image = preprocess_image


@patch
def regnet_files() -> None:
    """RegNet and EfficientNet look for their yaml files below the working directory, and the second network built in a
    process inherits the settings of the first.

    Until fastreid finds the files in its package and starts from the default settings.
    """
    config = regnet_config.cfg
    defaults = config.clone()
    merge_from_file = config.merge_from_file
    site_packages = os.path.join(os.path.dirname(regnet_config.__file__), *[os.pardir] * 4)

    def merge_from_packaged_file(name: str) -> None:
        config.update(copy.deepcopy(defaults))
        merge_from_file(os.path.normpath(os.path.join(site_packages, name)))

    vars(config)["merge_from_file"] = merge_from_packaged_file  # a config takes attributes for keys


@patch
def pretrained_downloads() -> None:
    """MODEL.BACKBONE.PRETRAIN without a path needs gdown, even for ResNets, whose files are not on Google Drive.

    torch.hub downloads them. Until fastreid uses gdown for Google Drive only.
    """
    for module in (resnet, resnext):
        replace(module.init_pretrained_weights, _downloader(module.model_urls))


def build_model(cfg: Any) -> nn.Module:
    """fastreid's ``build_model``, with a hook that moves the tensors of a batch to the device of the model."""
    model = _build_model(cfg)
    model.register_forward_pre_hook(_inputs_to_device)
    return model


def _downloader(urls: dict[str, str]) -> Callable[[str], dict]:
    def init_pretrained_weights(key: str) -> dict:
        return torch.hub.load_state_dict_from_url(urls[key], map_location="cpu", weights_only=True)

    return init_pretrained_weights


def _inputs_to_device(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    device = next(model.parameters()).device

    def move(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device, non_blocking=True)
        if isinstance(value, dict):
            return {key: move(item) for key, item in value.items()}
        return value

    return tuple(move(value) for value in inputs)


def preprocess_image(self: Any, batched_inputs: dict[str, Any] | torch.Tensor) -> torch.Tensor:
    """Normalise a batch by the model's pixel mean and deviation; the batch itself is not changed.

    Args:
        batched_inputs: images (B, 3, H, W) in [0, 255], or a dict with them under "images".
    """
    images = batched_inputs["images"] if isinstance(batched_inputs, dict) else batched_inputs
    if not isinstance(images, torch.Tensor):
        raise TypeError(f"the model takes a tensor or a dict with the tensor 'images', not a {type(images).__name__}")
    return images.to(self.device).sub(self.pixel_mean).div_(self.pixel_std)
