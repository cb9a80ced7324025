"""Ranks the images of an index by their similarity to a query."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from fastreid.config import CfgNode

from ..core import CameraStatistics, camera_reranked_blocks, k_nearest
from ..core.jaccard import jaccard_weights
from ..core.retrieval import distance_blocks, reranked_blocks
from ..data.folder import camera_in_name
from ..data.inspection import find_unreadable
from ..errors import InputError
from ..reporting.matches import Match
from .calibration import similarity_above
from .encoder import Encoder
from .index import CELLS, ImageIndex, as_text

if TYPE_CHECKING:
    import faiss

CANDIDATES = 1000  # the nearest images of a query, among which re-ranking looks for mutual neighbours
READ_SHARE = 1 / 8  # of the cells that a query reads, and at least
LEAST_READ = 16


@dataclass(frozen=True, eq=False)
class Ranking:
    """The k images that are nearest to a query, the nearest first.

    Attributes:
        rows: (k,) int64, rows of the index.
        similarities: (k,) float32, their cosines to the query, in [-1, 1].
        distances: (k,) float32 ascending, by which they are ranked: 1 - cosine, or the re-ranked distance.
    """

    rows: np.ndarray
    similarities: np.ndarray
    distances: np.ndarray


class Gallery:
    """The images of an index as a gallery for queries.

    Up to a million images (``fastreid_ice.deploy.index.EXACT_ROWS``), each is compared with each query. Beyond, the
    index has an inverted file, and a query is compared with the images of the cells nearest to it, about an eighth of
    all; a few neighbours are missed. Without that file the search is exact.

    Args:
        folder: of an index.
        camera_norm: compare features that are standardised within each camera, by the statistics of the gallery; see
            ``standardize_by_camera``. Each image is then compared with each query, whatever the size of the index.

    Attributes:
        index: its content.
        features: (N, D) float32 unit rows that are compared with queries.

    Raises:
        InputError: the folder holds no index.
    """

    def __init__(self, folder: Path, *, camera_norm: bool = False) -> None:
        self.folder, self.camera_norm = folder, camera_norm
        self.index = ImageIndex.read(folder)
        self.features = self.index.features
        if camera_norm:
            self.features = self._standardized(self.features, self.index.cameras)

    def encoder(self) -> Encoder:
        """The encoder that the features were extracted with.

        Raises:
            InputError: it is not where it was, or has changed.
        """
        origin = self.index.origin
        update = "`fastreid-ice search index` with --run and the same --images brings the index up to date"
        try:
            encoder = Encoder(Path(origin.run), origin.options, weights=Path(origin.weights))
        except InputError as error:
            raise InputError(f"the encoder of {self.folder} is not as it was ({error}); {update}") from error
        if encoder.fingerprint != origin.fingerprint:
            raise InputError(
                f"the weights {encoder.weights}, or the run's settings, have changed since {self.folder} was made, so "
                f"that queries cannot be compared with it; {update}"
            )
        return encoder

    def encode(self, queries: Sequence[str], encoder: Encoder) -> np.ndarray:
        """(Q, D) unit rows of query images.

        Raises:
            InputError: one cannot be read.
        """
        if reasons := find_unreadable(queries):
            raise InputError(f"{reasons[0]}; name a picture, such as a crop of a person as JPEG")
        return encoder.encode(queries)[0]

    def rows_of(self, paths: Sequence[str]) -> np.ndarray:
        """(Q,) int64, the row of each file in the index, -1 for one that it does not hold."""
        return np.array([self._row_of.get(os.path.abspath(path), -1) for path in paths], np.int64)

    def cameras_of(self, paths: Sequence[str], folder_rules: CfgNode) -> list[str]:
        """The camera of each query, "" if it is not known: that of the index, or what the rule finds in its file name.

        Args:
            paths: of the queries.
            folder_rules: the config node DATASETS.FOLDER.
        """
        rules = {"cameras": folder_rules.CAMERAS or "none", "metadata": folder_rules.METADATA or ""}
        return [
            self.index.cameras[row] if row >= 0 else as_text(camera_in_name(os.path.basename(path), **rules))
            for path, row in zip(paths, self.rows_of(paths), strict=True)
        ]

    def threshold(self, share: float, *, other_cameras: bool = False) -> float:
        """The cosine above which a share of the true matches lies: an estimate from the clusters of the run.

        It is that of pairs of images in one cluster. Clusters are no truth: a person in two clusters counts too few
        pairs, and two people in one cluster too many.

        Args:
            share: in (0, 1].
            other_cameras: only pairs in two cameras count.

        Raises:
            InputError: the run has no cluster with such a pair, or ``camera_norm``, with which cosines are others.
        """
        if self.camera_norm:
            raise InputError(
                f"--threshold {share:.0%} is estimated for features as they are; with --camera-norm give a cosine, "
                "such as --threshold 0.5"
            )
        quantiles = self.index.origin.calibration["other cameras" if other_cameras else "all"]
        if quantiles is None:
            pairs = "images of two known cameras" if other_cameras else "two images that still exist"
            raise InputError(
                f"--threshold {share:.0%}: the run {self.index.origin.run} has no cluster with {pairs}, from which it "
                "could be estimated; give a cosine, such as --threshold 0.6"
            )
        return similarity_above(quantiles, share)

    def search(
        self,
        queries: np.ndarray,
        *,
        top_k: int = 10,
        own: np.ndarray | None = None,
        cameras: Sequence[str] | None = None,
        other_cameras: bool = False,
        threshold: float = -1.0,
        rerank: CfgNode | None = None,
        device: torch.device | str = "cpu",
    ) -> list[Ranking]:
        """Ranks the gallery for each query.

        Args:
            queries: (Q, D) float32 unit rows.
            top_k: the length of a ranking, if there are so many images.
            own: (Q,) int64, the row of each query itself, which is left out; -1 for none.
            cameras: Q names, "" if not known; needed for ``other_cameras``, for re-ranking by "ca_jaccard", and for
                standardised features.
            other_cameras: only images in other known cameras than the query's are ranked.
            threshold: only images with a cosine of at least this are ranked.
            rerank: the config node TEST.RERANK, to re-rank the ``CANDIDATES`` nearest images of each query by the
                Jaccard distance that it names. Its numbers of neighbours are lowered if there are fewer images. The
                ranking of a query does not depend on other queries.
            device: where re-ranking searches neighbours.

        Raises:
            InputError: ``top_k`` below 1, or features of another length.
        """
        if top_k < 1:
            raise InputError(f"--top-k {top_k} must be at least 1")
        if queries.shape[1] != self.index.features.shape[1]:
            raise InputError(f"the queries have {queries.shape[1]} dimensions, {self.folder} has another number")
        count = max(top_k, CANDIDATES) if rerank is not None else top_k
        own = np.full(len(queries), -1) if own is None else own
        cameras = [""] * len(queries) if cameras is None else cameras
        if self.camera_norm:
            queries = self._standardized(queries, cameras)
        similarities, rows = self._nearest(queries, count + 1, cameras if other_cameras else None)
        found = []
        for query, camera, itself, cosines, ranked in zip(queries, cameras, own, similarities, rows, strict=True):
            kept = np.flatnonzero((ranked >= 0) & (ranked != itself))[:count]
            # faiss leaves the order of equal similarities open.
            kept = kept[np.lexsort((ranked[kept], -cosines[kept]))]
            cosines, ranked = cosines[kept].clip(-1, 1), ranked[kept]
            distances = 1 - cosines
            if rerank is not None and len(ranked):
                distances = self._reranked(query, camera, ranked, rerank, device)
            order = np.argsort(distances, kind="stable")
            order = order[cosines[order] >= threshold][:top_k]
            found.append(Ranking(ranked[order], cosines[order], distances[order]))
        return found

    def matches(self, ranking: Ranking) -> list[Match]:
        """The images of a ranking with their files and cameras."""
        columns = zip(ranking.rows, ranking.similarities, ranking.distances, strict=True)
        return [
            Match(rank, self.index.paths[row], self.index.cameras[row], float(similarity), float(distance))
            for rank, (row, similarity, distance) in enumerate(columns, 1)
        ]

    def _nearest(self, queries: np.ndarray, count: int, cameras: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
        """(Q, k) cosines and rows, -1 where there are fewer; without the images in a query's camera, if given."""
        import faiss

        count = min(count, len(self.index.paths))
        similarities = np.empty((len(queries), count), np.float32)
        rows = np.empty((len(queries), count), np.int64)
        names = np.zeros(len(queries), np.int64) if cameras is None else np.array(cameras, object)
        for name in dict.fromkeys(names.tolist()):
            same = np.flatnonzero(names == name)
            selector = None
            if cameras is not None:
                allowed = (self._cameras != name) & (self._cameras != "")
                selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
            if isinstance(self._faiss, faiss.IndexIVFFlat):
                read = max(LEAST_READ, round(self._faiss.nlist * READ_SHARE))
                settings = faiss.SearchParametersIVF(sel=selector, nprobe=read)
            else:
                settings = faiss.SearchParameters(sel=selector)
            similarities[same], rows[same] = self._faiss.search(queries[same], count, params=settings)
        return similarities, rows

    def _reranked(
        self, query: np.ndarray, camera: str, rows: np.ndarray, rerank: CfgNode, device: torch.device | str
    ) -> np.ndarray:
        """(M,) re-ranked distances from a query to M candidates."""
        candidates = torch.from_numpy(self.features[rows]).to(device)
        first = torch.from_numpy(query[None]).to(device)
        if rerank.DISTANCE == "ca_jaccard":
            names = np.append(self._cameras[rows], camera).astype(str)
            numbers = np.unique(names, return_inverse=True)[1]
            sizes = {name.lower(): min(size, len(rows)) for name, size in rerank.CA_JACCARD.items()}
            blocks = camera_reranked_blocks(
                first, candidates, numbers[-1:], numbers[:-1], **sizes, distance_weight=rerank.LAMBDA
            )
        else:
            features, k1 = torch.cat([first, candidates]), min(rerank.K1, len(rows) + 1)
            weights = jaccard_weights(features, k_nearest(features, k1)[1], k1=k1, k2=min(rerank.K2, k1))
            blocks = reranked_blocks(distance_blocks(first, candidates), weights, distance_weight=rerank.LAMBDA)
        return next(iter(blocks))[0].cpu().numpy()

    @cached_property
    def _faiss(self) -> faiss.Index:
        import faiss

        cells = self.folder / CELLS.format(self.index.origin.id)
        if cells.is_file() and not self.camera_norm:
            return faiss.read_index(str(cells), faiss.IO_FLAG_MMAP)
        index = faiss.IndexFlatIP(self.features.shape[1])
        index.add(self.features)
        return index

    def _standardized(self, features: np.ndarray, cameras: Sequence[str]) -> np.ndarray:
        return self._statistics.standardize(features, self._numbers(cameras)).numpy()

    @cached_property
    def _statistics(self) -> CameraStatistics:
        return CameraStatistics.of(self.index.features, self._numbers(self.index.cameras))

    def _numbers(self, cameras: Sequence[str]) -> np.ndarray:
        """A number for each camera, -1 for those that the index does not have."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(self.index.cameras))}
        return np.array([numbers.get(name, -1) for name in cameras])

    @cached_property
    def _cameras(self) -> np.ndarray:
        return np.array(self.index.cameras, object)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {path: row for row, path in enumerate(self.index.paths)}


def read_threshold(text: str | None, gallery: Gallery, *, other_cameras: bool) -> tuple[float, str]:
    """The least cosine, -1 for any, and a sentence about it.

    Raises:
        InputError: the text is neither a cosine nor a share, or the share is not known.
    """
    if text is None:
        return -1.0, ""
    is_share = text.endswith("%")
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = float("nan")
    if not (0 < value <= 100 if is_share else -1 <= value <= 1):
        raise InputError(f"--threshold {text!r} must be a cosine in [-1, 1], or a share such as 90%")
    if not is_share:
        return value, f"Threshold: only results with a cosine of at least {value:g}."
    cosine = gallery.threshold(value / 100, other_cameras=other_cameras)
    pairs = "pairs of images of two cameras" if other_cameras else "pairs of images"
    return cosine, (
        f"Threshold: {value:g}% of the {pairs} in one cluster of the run have a cosine of at least {cosine:.3f}. "
        "This is an estimate from pseudo labels, not from true identities."
    )
