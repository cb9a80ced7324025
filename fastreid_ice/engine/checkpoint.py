"""fast-reid's Checkpointer, except that weights that do not fit are an error."""

from __future__ import annotations

import os
import pickle

import torch
from fastreid.utils.checkpoint import Checkpointer as _Checkpointer

from ..config import InputError


def read_checkpoint(path: str, *, mmap: bool = False) -> dict:
    """A fast-reid checkpoint, on the CPU; with ``mmap`` its weights are read when they are used.

    Raises:
        InputError: no file, a file that cannot be read, or one that holds something else.
    """
    try:
        state = torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"no checkpoint {path}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(
            f"cannot load weights from {path}: {str(error).partition(chr(10))[0] or type(error).__name__}"
        ) from error
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise InputError(
            f"{path} is no fast-reid checkpoint (a dict with the weights under 'model'); bare backbone weights "
            f"go into MODEL.BACKBONE.PRETRAIN_PATH, with MODEL.BACKBONE.PRETRAIN True"
        )
    return state


class Checkpointer(_Checkpointer):
    """fast-reid's Checkpointer, which skips what does not fit and goes on from random weights; this one refuses.

    Heads may be missing, since users start from backbones; a part of a backbone may not.
    """

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict:
        if path and not os.path.isfile(path):
            raise InputError(f"MODEL.WEIGHTS: no file {path!r}")
        return super().load(path, checkpointables)

    def _load_file(self, path: str) -> dict:
        state = read_checkpoint(path)
        self._path = path
        return state

    def _log_incompatible_keys(self, incompatible) -> None:
        if incompatible.incorrect_shapes:
            name, found, expected = incompatible.incorrect_shapes[0]
            raise InputError(
                f"{self._path} does not fit this model: {name} is {found}, expected {expected}; use the "
                f"MODEL.BACKBONE and MODEL.HEADS that it was trained with"
            )
        missing = [name for name in incompatible.missing_keys if "backbone." in name]
        if missing:
            raise InputError(
                f"{self._path} does not fit this model: it has no {missing[0]} (and {len(missing) - 1} more); use the "
                f"MODEL.BACKBONE that it was trained with"
            )
        super()._log_incompatible_keys(incompatible)
