"""What a run starts from where the weights that its config asks for are out of reach."""

from __future__ import annotations

from fastreid.config import CfgNode

from ..modeling import NoWeights, build_fitting_backbone
from .checkpoint import read_checkpoint


def fall_back(cfg: CfgNode, other: CfgNode, *, checkpoint: str = "") -> str:
    """Puts backbone and weights of ``other`` into ``cfg``, which is checked, where those of ``cfg`` cannot be used.

    Without a checkpoint that is where the pretrained weights cannot be downloaded. With one its weights tell which of
    the two networks they are of, so that a run that fell back is resumed, evaluated and exported by the same config.

    Args:
        cfg: changed in place.
        other: the config that ``MODEL.FALLBACK.CONFIG`` names.
        checkpoint: the file that a run goes on from or is evaluated with, if any.

    Returns:
        A text for the log; empty where nothing was changed, or where the checkpoint decided.

    Raises:
        InputError: weights that are there and do not fit.
    """
    text = ""
    if checkpoint:
        if _holds_backbone(cfg, checkpoint):
            return text
    elif not cfg.MODEL.BACKBONE.PRETRAIN:
        return text
    else:
        try:
            build_fitting_backbone(cfg)
            return text
        except NoWeights as error:
            text = f"{error}. {cfg.MODEL.FALLBACK.NOTE}".strip()
    cfg.MODEL.BACKBONE = other.MODEL.BACKBONE
    cfg.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS or other.MODEL.WEIGHTS
    cfg.MODEL.FALLBACK.CONFIG = ""
    return text


def _holds_backbone(cfg: CfgNode, checkpoint: str) -> bool:
    """Whether any weight in the file has a name of the config's backbone."""
    cfg = cfg.clone()
    cfg.MODEL.BACKBONE.PRETRAIN = False
    names = {f"backbone.{name}" for name in build_fitting_backbone(cfg).state_dict()}
    return not names.isdisjoint(read_checkpoint(checkpoint, mmap=True)["model"])
