"""What a run starts from if the weights that its config asks for are not available."""

from __future__ import annotations

from fastreid.config import CfgNode

from ..modeling import NoWeights, build_fitting_backbone
from .checkpoint import read_checkpoint


def fall_back(cfg: CfgNode, other: CfgNode, *, checkpoint: str = "") -> str:
    """Puts backbone and weights of ``other`` into ``cfg``, already checked, if those of ``cfg`` cannot be used.

    Without a checkpoint this happens if the pretrained weights cannot be downloaded. With one, its weights show which
    of the two networks it belongs to, so that a run that fell back is resumed, evaluated and exported by the same
    config.

    Args:
        cfg: changed in place.
        other: the config that ``MODEL.FALLBACK.CONFIG`` names.
        checkpoint: the file that a run continues from or is evaluated with, if any.

    Returns:
        A text for the log; empty if nothing was changed, or if the checkpoint decided.

    Raises:
        InputError: weights that are available but do not fit.
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
    """Whether any weight in the file has a name that occurs in the config's backbone."""
    cfg = cfg.clone()
    cfg.MODEL.BACKBONE.PRETRAIN = False
    names = {f"backbone.{name}" for name in build_fitting_backbone(cfg).state_dict()}
    return not names.isdisjoint(read_checkpoint(checkpoint, mmap=True)["model"])
