"""Exact nearest neighbours under cosine similarity, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


@torch.no_grad()
def k_nearest(
    features: Tensor | np.ndarray,
    k: int,
    *,
    chunk_size: int = 1024,
    device: torch.device | str | None = None,
    queries: slice = slice(None),
    progress: Callable[[Sequence[Tensor]], Iterable[Tensor]] = iter,
) -> tuple[Tensor, Tensor]:
    """Find the ``k`` most similar rows of every row, the row itself first.

    Exact search by matrix products of ``chunk_size`` rows with all N. Rows of equal similarity are listed by ascending
    index; which of them are kept when they straddle rank ``k`` is unspecified.

    Args:
        features: (N, D) floating point, any row norm but zero; normalised here. Half precision is computed in float32.
        k: neighbours per row, the row itself included; in [1, N].
        chunk_size: queries per block.
        device: where to compute; by default where ``features`` lives.
        queries: the rows to search for, all by default. Several processes may each take a slice of the same features.
        progress: wraps the sequence of query blocks, ``tqdm`` for instance; silent by default.

    Returns:
        ``similarities`` (Q, k) in [-1, 1], descending after the first column, and ``indices`` (Q, k) int64,
        for the Q selected rows, on the device of ``features``.

    Raises:
        ValueError: for a wrong shape or type, ``k`` or ``chunk_size`` out of range, or rows that have no direction.

    Time O(Q N D); memory one normalised copy of the features and a block of ``chunk_size`` x N similarities.
    """
    home = features.device if isinstance(features, Tensor) else torch.device("cpu")
    rows = _unit_rows(features, device)
    num_rows = len(rows)
    if not 1 <= k <= num_rows:
        raise ValueError(f"k must lie in [1, {num_rows}], the number of feature rows, got {k}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")

    selected = torch.arange(num_rows, device=rows.device)[queries]
    similarities = rows.new_empty(len(selected), k)
    indices = selected.new_empty(len(selected), k)
    start = 0
    for block in progress(selected.split(chunk_size)):
        stop = start + len(block)
        similarities[start:stop], indices[start:stop] = _search(rows, block, k)
        start = stop
    return similarities.to(home), indices.to(home)


def _search(rows: Tensor, block: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` nearest of the rows numbered ``block`` (b,): similarities (b, k), indices (b, k)."""
    scores = rows[block] @ rows.T
    # Copies of a row are as similar to it as it is to itself: lift the row over them.
    scores.scatter_(1, block[:, None], torch.inf)
    winners = scores.topk(k, sorted=False).indices.sort(1).values
    best, order = scores.gather(1, winners).sort(dim=1, descending=True, stable=True)
    return best.clamp_(-1, 1), winners.gather(1, order)


def _unit_rows(features: Tensor | np.ndarray, device: torch.device | str | None) -> Tensor:
    """A normalised copy of ``features`` on ``device``, float64 if they are and float32 otherwise."""
    tensor = features.detach() if isinstance(features, Tensor) else torch.tensor(np.asarray(features))
    if tensor.dim() != 2 or not tensor.is_floating_point():
        raise ValueError(f"features must be a floating point (N, D) matrix, got {tensor.dtype} {tuple(tensor.shape)}")
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    rows = tensor.to(device=device, dtype=dtype, copy=isinstance(features, Tensor))
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    unusable = ~(norms.isfinite() & (norms > 0)).squeeze(1)
    if unusable.any():
        raise ValueError(
            f"features must be finite and not all zeros in a row, but row {int(unusable.int().argmax())} and "
            f"{int(unusable.sum()) - 1} more of {len(rows)} are; check the network that produced them"
        )
    return rows.div_(norms)
