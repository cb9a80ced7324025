"""What all searches for neighbours share: ordering candidates by float64 similarities, and trying searches in turn.

A list holds the query itself first, then the most similar rows, and rows of equal similarity by ascending index.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from ._arrays import map_blocks

# Similarities (b, k) and indices (b, k) int64 of a block of b queries, and (b,) bool: whether each list is certain.
Found = tuple[Tensor, Tensor, Tensor]
Search = Callable[[Tensor], Found]
Progress = Callable[[Sequence[Tensor]], Iterable[Tensor]]

logger = logging.getLogger(f"fastreid.{__name__}")

_RANKED = 64  # queries per block for which a thread ranks candidates
_SCANNED = 32  # queries, and rows, that the scan keeps in the processor's cache


def search_in_turn(
    searches: Sequence[Callable[[], Search]],
    queries: Tensor,
    k: int,
    *,
    dtype: torch.dtype,
    chunk_size: int,
    progress: Progress,
) -> tuple[Tensor, Tensor]:
    """Similarities (Q, k) and indices (Q, k) int64; each search computes the lists that are not certain yet.

    Args:
        searches: factories of the searches, called only if lists are left.
        queries: (Q,) int64, the rows to search for.
        k: length of the lists.
        dtype: of the similarities that are returned.
        chunk_size: queries per call of a search.
        progress: wraps the sequence of blocks of queries, once per search.
    """
    similarities = torch.empty(len(queries), k, dtype=dtype, device=queries.device)
    indices = queries.new_empty(len(queries), k)
    left = torch.arange(len(queries), device=queries.device)
    for number, start in enumerate(searches, 1):
        if not len(left):
            break
        if number == len(searches) > 1:
            logger.info(
                "Neighbors of %d of %d rows are too close to each other for a product: comparing them one by one",
                len(left),
                len(queries),
            )
        search = start()
        uncertain = []
        for block in progress(left.split(chunk_size)):
            best, indices[block], certain = search(queries[block])
            similarities[block] = best.to(dtype)
            uncertain.append(block[~certain])
        left = torch.cat(uncertain)
    return similarities, indices


def rank_candidates(
    rows: Tensor,
    scale: Tensor,
    queries: Tensor,
    candidates: Tensor,
    counts: Tensor,
    k: int,
    scores: Tensor,
    errors: Tensor,
) -> Found:
    """The ``k`` nearest of each query's candidates; certain if all scores are within their errors.

    Args:
        rows: (N, D) float32 or float64, of any norm.
        scale: (N,) float64, one over the norms.
        queries: (b,) int64, the rows to search for.
        candidates: (b, m) int64, including the query.
        counts: (b,) int64, how many of the first candidates of each query are valid; if fewer than ``k``, the end of
            its list is filler.
        k: length of the lists.
        scores: (b, m) approximate similarities of the candidates.
        errors: (b, m) bounds on the error of these.
    """
    if rows.device.type != "cpu":
        return _rank_in_torch(rows, scale, queries, candidates, counts, k, scores, errors)
    arrays = (array.numpy() for array in (rows, scale, queries, candidates, counts, scores, errors))
    blocks = map_blocks(_rank_block, len(queries), k, *arrays, block=_RANKED)
    similarities, indices, within = (torch.as_tensor(np.concatenate(parts)) for parts in zip(*blocks, strict=True))
    return similarities, indices, within


class Scan:
    """Compares with all rows in float64, one by one: for rows that no matrix product can settle, such as many copies.

    With ``groups`` (N,) int64 it compares with rows of the query's own group, or of all other groups if ``same`` is
    False. A list that is too short ends in filler.
    """

    def __init__(self, rows: Tensor, scale: Tensor, k: int, groups: Tensor | None = None, *, same: bool = True) -> None:
        self.rows, self.scale, self.k = rows.cpu().numpy(), scale.cpu().numpy(), k
        self.groups = np.zeros(len(rows), np.int64) if groups is None else groups.cpu().numpy()
        self.same = same

    def __call__(self, queries: Tensor) -> Found:
        arguments = (self.rows, self.scale, queries.cpu().numpy(), self.k, self.groups, self.same)
        blocks = map_blocks(_scan_block, len(queries), *arguments, block=_SCANNED)
        similarities, indices = (torch.as_tensor(np.concatenate(parts)) for parts in zip(*blocks, strict=True))
        certain = torch.ones(len(queries), dtype=torch.bool, device=queries.device)
        return similarities.to(queries.device), indices.to(queries.device), certain


def _rank_in_torch(
    rows: Tensor,
    scale: Tensor,
    queries: Tensor,
    candidates: Tensor,
    counts: Tensor,
    k: int,
    scores: Tensor,
    errors: Tensor,
) -> Found:
    """Like ``rank_candidates``, on any device."""
    candidates, order = candidates.sort(1)
    scores, errors = scores.gather(1, order), errors.gather(1, order)
    counted = order < counts[:, None]
    own = candidates == queries[:, None]
    units = (rows[queries] * scale[queries, None]).double()
    similarities = torch.cat(
        [
            torch.einsum("bd,bmd->bm", units[part], rows[candidates[part]].double()) * scale[candidates[part]]
            for part in torch.arange(len(queries), device=rows.device).split(_RANKED)
        ]
    )
    within = (((similarities - scores).abs() <= errors) | own | ~counted).all(1)
    similarities = similarities.where(~own, torch.inf).where(counted, -torch.inf)
    best, order = similarities.sort(dim=1, descending=True, stable=True)
    filler = (0, max(k - best.shape[1], 0))
    return F.pad(best[:, :k], filler, value=-torch.inf), F.pad(candidates.gather(1, order[:, :k]), filler), within


@njit(nogil=True, cache=True)
def _rank_block(start, stop, k, rows, scale, queries, candidates, counts, scores, errors):
    """The nearest candidates of queries [start, stop), and whether each candidate's score is within its error."""
    similarities = np.full((stop - start, k), -np.inf)
    indices = np.zeros((stop - start, k), np.int64)
    within = np.ones(stop - start, np.bool_)
    unit = np.empty(rows.shape[1])
    for r in range(start, stop):
        i = queries[r]
        unit[:] = rows[i] * scale[i]
        filled = 0
        for c in range(counts[r]):
            j = candidates[r, c]
            similarity = np.inf
            if j != i:
                similarity = dot(unit, rows[j]) * scale[j]
                within[r - start] &= abs(similarity - scores[r, c]) <= errors[r, c]
            filled = insert(similarities[r - start], indices[r - start], filled, similarity, j)
    return similarities, indices, within


@njit(nogil=True, cache=True)
def _scan_block(start, stop, rows, scale, queries, k, groups, same):
    """The nearest rows of queries [start, stop) in the groups that count. A tile of rows stays in the cache for all."""
    num_queries = stop - start
    similarities = np.full((num_queries, k), -np.inf)
    indices = np.zeros((num_queries, k), np.int64)
    filled = np.zeros(num_queries, np.int64)
    units = np.empty((num_queries, rows.shape[1]))
    for r in range(num_queries):
        i = queries[start + r]
        units[r] = rows[i] * scale[i]
    for tile in range(0, len(rows), _SCANNED):
        for r in range(num_queries):
            for j in range(tile, min(tile + _SCANNED, len(rows))):
                if (groups[j] == groups[queries[start + r]]) != same:
                    continue
                similarity = np.inf if j == queries[start + r] else dot(units[r], rows[j]) * scale[j]
                filled[r] = insert(similarities[r], indices[r], filled[r], similarity, j)
    return similarities, indices


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def dot(unit, row):
    """The product of two rows, summed in float64."""
    total = 0.0
    for d in range(len(unit)):
        total += unit[d] * row[d]
    return total


@njit(nogil=True, cache=True)
def insert(similarities, indices, filled, similarity, index):
    """Insert an entry into a list, most similar first, then by index. Returns the new length of the list."""
    place = min(filled, len(similarities) - 1)
    if filled == len(similarities) and not _before(similarity, index, similarities[place], indices[place]):
        return filled
    while place and _before(similarity, index, similarities[place - 1], indices[place - 1]):
        similarities[place] = similarities[place - 1]
        indices[place] = indices[place - 1]
        place -= 1
    similarities[place] = similarity
    indices[place] = index
    return min(filled + 1, len(similarities))


@njit(nogil=True, cache=True)
def _before(similarity, index, other_similarity, other_index):
    return similarity > other_similarity or (similarity == other_similarity and index < other_index)
