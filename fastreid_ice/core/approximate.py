"""Approximate nearest neighbours: an index of faiss, then one look at the neighbours of neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import faiss
import numpy as np
import torch
from numba import njit
from torch import Tensor

from ._arrays import map_blocks
from .ranking import Found, dot, insert

_ADDED = 65536  # rows added to an index at a time
_SEARCHED = 4096  # rows searched for at a time
_REFINED = 256  # rows that a thread refines at a time


class FaissSearch:
    """Neighbours by an index of faiss over all rows, refined; called with a block of queries.

    "ivf" compares a query with the rows of the cells around it (Jegou et al., "Product quantization for nearest
    neighbor search", TPAMI 2011, with uncompressed rows). "hnsw" walks a graph of neighbours (Malkov and Yashunin,
    TPAMI 2020); it is built in parallel, so that equal runs may differ slightly. A neighbour that was missed is likely
    in the list of another one (Dong et al., "Efficient k-nearest neighbor graph construction", WWW 2011), so that one
    look at the lists of a row's neighbours makes up for a search of many more cells. What was found is ordered
    by float64 similarities; a list that comes short is not certain.

    Args:
        method: "ivf", on the GPU of ``rows`` where faiss was built for one, or "hnsw".
        progress: wraps the sequence of blocks that are searched.
        rows: (N, D) of any norm.
        scale: (N,) one over the norms.
        k: neighbours per query.
    """

    def __init__(
        self,
        method: str,
        progress: Callable[[Sequence[Tensor]], Iterable[Tensor]],
        rows: Tensor,
        scale: Tensor,
        k: int,
    ) -> None:
        self.rows, self.scale, self.k = rows.cpu().numpy(), scale.cpu().numpy(), k
        index = self._hnsw() if method == "hnsw" else self._ivf(rows.device)
        everything = torch.arange(len(rows))
        for block in everything.split(_ADDED):
            index.add(self._unit(block))
        self.lists = np.concatenate(
            [index.search(self._unit(block), k)[1] for block in progress(everything.split(_SEARCHED))]
        )

    def __call__(self, queries: Tensor) -> Found:
        blocks = map_blocks(
            _refine_block,
            len(queries),
            self.rows,
            self.scale,
            queries.cpu().numpy(),
            self.lists,
            block=_REFINED,
        )
        similarities, indices, counts = (torch.as_tensor(np.concatenate(parts)) for parts in zip(*blocks, strict=True))
        return similarities, indices, counts == self.k

    def _hnsw(self) -> Any:
        index = faiss.IndexHNSWFlat(self.rows.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 80
        index.hnsw.efSearch = max(256, 4 * self.k)
        return index

    def _ivf(self, device: torch.device) -> Any:
        num_rows, dim = self.rows.shape
        cells = max(1, min(round(4 * num_rows**0.5), num_rows // 64))
        index: Any = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, cells, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = max(16, cells // 8)
        index.cp.max_points_per_centroid = 64
        if device.type == "cuda" and faiss.get_num_gpus():
            index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device.index or 0, index)
        sample = torch.randperm(num_rows, generator=torch.Generator().manual_seed(0))[: 64 * cells]
        index.train(self._unit(sample))
        return index

    def _unit(self, indices: Tensor) -> np.ndarray:
        chosen = indices.numpy()
        return (self.rows[chosen] * self.scale[chosen, None]).astype(np.float32)


@njit(nogil=True, cache=True)
def _refine_block(start, stop, rows, scale, queries, lists):
    """The nearest of what queries [start, stop) and their neighbours list (-1: nothing), and how many there are."""
    k = lists.shape[1]
    similarities = np.full((stop - start, k), -np.inf)
    indices = np.zeros((stop - start, k), np.int64)
    counts = np.zeros(stop - start, np.int64)
    met = np.full(len(rows), -1)  # the last query that met each row
    unit = np.empty(rows.shape[1])
    for r in range(start, stop):
        i = queries[r]
        unit[:] = rows[i] * scale[i]
        filled = insert(similarities[r - start], indices[r - start], 0, np.inf, i)
        met[i] = r
        for a in range(-1, k):
            neighbor = i if a < 0 else lists[i, a]
            for b in range(k if neighbor >= 0 else 0):
                j = lists[neighbor, b]
                if j >= 0 and met[j] != r:
                    met[j] = r
                    similarity = dot(unit, rows[j]) * scale[j]
                    filled = insert(similarities[r - start], indices[r - start], filled, similarity, j)
        counts[r - start] = filled
    return similarities, indices, counts
