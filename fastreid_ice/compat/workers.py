"""Functions that spawned loader workers unpickle, so they are imported before fastreid and may not import it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def fast_batch_collator(batch: list[Any]) -> Any:
    """Stack tensors, arrays and numbers (Python's as int64 and float64), keep strings as a list, and do the same inside
    mappings, tuples and lists.

    Raises:
        TypeError: anything else.
    """
    first = batch[0]
    if isinstance(first, torch.Tensor):
        return torch.stack(batch)
    if isinstance(first, np.ndarray):
        return torch.from_numpy(np.stack(batch))
    if isinstance(first, Mapping):
        return {key: fast_batch_collator([sample[key] for sample in batch]) for key in first}
    if isinstance(first, (str, bytes)):
        return batch
    if isinstance(first, (tuple, list)):
        return [fast_batch_collator(list(column)) for column in zip(*batch, strict=True)]
    if isinstance(first, (bool, int, float, np.bool_, np.integer, np.floating)):
        return torch.from_numpy(np.asarray(batch))
    raise TypeError(f"a dataset returned a {type(first).__name__}, which cannot be put into a batch")


def restore_dataset(module: str, name: str, state: dict[str, Any]) -> Any:
    cls = getattr(importlib.import_module(module), name)
    dataset = cls.__new__(cls)
    dataset.__dict__.update(state)
    return dataset
