"""Reading files of weights without running code that may be in them."""

from __future__ import annotations

import argparse
import re
from contextlib import nullcontext
from typing import Any

import torch

from ..errors import InputError


def read_weights(path: str, *, mmap: bool = False) -> Any:
    """The content that ``torch.save`` wrote to ``path``, on the CPU; with ``mmap`` tensors are read when they are used.

    Raises:
        InputError: no file, a file that cannot be read, or one with more than tensors, numbers, strings and containers
            of them (an argparse.Namespace is one). torch's own message suggests loading such a file anyway, which runs
            the code in it.
    """
    # Many published checkpoints hold the arguments of their run; torch 2.4 cannot read these.
    safe_globals = getattr(torch.serialization, "safe_globals", lambda _: nullcontext())
    try:
        with safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except OSError as error:
        raise InputError(f"cannot load weights from {path}: {error.strerror or error}") from error
    except Exception as error:  # torch runs the bytes as instructions, so other files can raise any error
        held = re.search(r"GLOBAL (\S+)", str(error))
        reason = "it is cut off, or was not written by torch.save; use another file"
        if held:
            reason = (
                f"it holds {held[1]}, which is no tensor, and loading that could run code; use a file of weights alone"
            )
        elif "TorchScript archive" in str(error):  # as CLIP is published
            reason = "it is a TorchScript archive, which holds code; save its state_dict() with torch.save and use that"
        raise InputError(f"cannot load weights from {path}: {reason}") from error
