"""Clusterers on k-reciprocal Jaccard distances, and DBSCAN, the usual one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.utils import comm
from scipy import sparse
from torch import Tensor

from ..core import (
    Constraints,
    Enforced,
    ImageTable,
    camera_jaccard_graph,
    choose_eps,
    choose_k1,
    combine_constraints,
    constrain_graph,
    dbscan,
    enforce_constraints,
    jaccard_graph,
    k_nearest,
    standardize_by_camera,
    track_constraints,
)
from ..errors import InputError
from ..progress import progress
from .base import CLUSTERER_REGISTRY, Clusterer, centroid_offsets

logger = logging.getLogger(f"fastreid.{__name__}")
_searching = partial(progress, title="Searching neighbors")


class JaccardClusterer(Clusterer):
    """Base of the clusterers on a sparse graph of Jaccard distances; a subclass turns the graph into labels.

    Memory grows with N * K1, never with N * N. Several processes share the search for neighbours, which takes nearly
    all of the time; the first one computes graph and labels, which equal those of a single process.

    Args:
        min_samples: number of images near an image, including itself, that make it a core image.
        k1: neighbours in the k-reciprocal sets; lowered, with a line in the log, if the set has fewer images.
        auto_k1: instead of using ``k1``, choose it by the number of images at each call; see ``choose_k1``.
        k2: neighbours averaged in the query expansion.
        camera_norm: first standardise features within each camera, see ``standardize_by_camera``; over all images if
            no camera is known.
        neighbors: how neighbours are searched: "exact" or "cells", see ``k_nearest``.
        max_distance: pairs further apart are dropped; they do not matter to the clusterer.
        device: where neighbours are searched and the graph is computed; a camera-aware graph is computed on the CPU.
        camera_sizes: keywords of ``camera_jaccard_graph``, whose camera-aware distance then replaces the plain one of
            ``k1`` and ``k2``. The first process searches alone for it.
        tracks: keep what tracks say of people, see ``track_constraints``: the images of a track have one label, and two
            tracks of one camera that overlap in time are never in one cluster.

    A person's corrections (``known.corrections``) leave the graph in the same way, and overrule tracks.

    Attributes:
        radius: the longest distance that joins two images, in (0, 1]; ``partition`` may lower it.
    """

    radius = 1.0
    keeps_corrections = True

    def __init__(
        self,
        *,
        min_samples: int = 4,
        k1: int = 30,
        auto_k1: bool = False,
        k2: int = 6,
        camera_norm: bool = False,
        neighbors: str = "exact",
        max_distance: float = 1.0,
        device: str = "cpu",
        camera_sizes: Mapping[str, int] | None = None,
        tracks: bool = False,
    ) -> None:
        super().__init__()
        self.min_samples = min_samples
        self.k1 = k1
        self.auto_k1 = auto_k1
        self.k2 = k2
        self.camera_norm = camera_norm
        self.neighbors = neighbors
        self.order_matters = self.order_matters or neighbors == "cells"  # whose centres are drawn by position
        self.max_distance = max_distance
        self.device = torch.device(device)
        self.camera_sizes = camera_sizes
        self.shared = camera_sizes is None
        self.needs_cameras = camera_sizes is not None
        self.needs_tracks = tracks

    @staticmethod
    def graph_keywords(cfg: CfgNode) -> dict:
        """The keywords of ``__init__`` that determine the graph."""
        node = cfg.CLUSTER
        sizes = {name.lower(): size for name, size in node.CA_JACCARD.items()}
        return {
            "min_samples": node.MIN_SAMPLES,
            "k1": node.K1,
            "auto_k1": node.AUTO_K1,
            "k2": node.K2,
            "camera_norm": node.CAMERA_NORM,
            "neighbors": node.NEIGHBORS,
            "device": cfg.MODEL.DEVICE,
            "camera_sizes": sizes if node.DISTANCE == "ca_jaccard" else None,
            "tracks": node.TRACKS,
        }

    @property
    def min_size(self) -> int:
        """Fewer images than this are no cluster."""
        return self.min_samples

    def partition(self, graph: sparse.csr_array) -> np.ndarray:
        """(N,) integer labels, -1 for noise, else 0..C-1, from the graph of N >= 3 images."""
        raise NotImplementedError

    def labels(self, features: Tensor, known: ImageTable) -> Tensor | None:
        if self.needs_tracks:
            check_tracks(known)
        if len(features) < 3:
            noise = torch.full((len(features),), -1)
            return noise if known.corrections is None else self._corrected(noise, features, known.corrections)
        compared = standardize_by_camera(features, known.cameras) if self.camera_norm else features
        graph = self._graph(compared) if self.camera_sizes is None else self._camera_graph(compared, known.cameras)
        if graph is None:
            return None
        constrained = self.needs_tracks or known.corrections is not None
        labels = self._partition_constrained(graph, features, known) if constrained else self.partition(graph)
        return torch.as_tensor(labels, dtype=torch.int64)

    def _partition_constrained(self, graph: sparse.csr_array, features: Tensor, known: ImageTable) -> np.ndarray:
        overruled = 0
        with self.stage("constraints"):
            if not self.needs_tracks:
                constraints = known.corrections
            else:
                constraints = track_constraints(known)
                if known.corrections is not None:
                    constraints, overruled = combine_constraints(constraints, known.corrections)
            graph = constrain_graph(graph, constraints)
        found = self.partition(graph)
        with self.stage("repair"):
            offsets = None  # of the features as they are, in which people see the centres of clusters
            if constraints.certain.any():
                offsets = centroid_offsets(features, torch.as_tensor(found, dtype=torch.int64))
            options = {"offsets": offsets, "radius": self.radius, "min_size": self.min_size}
            kept = enforce_constraints(found, graph, constraints, **options)
        if known.corrections is not None:
            self.count(kept, constraints, overruled)
        if self.needs_tracks:
            self._count_tracks(kept, constraints)
        return kept.labels

    def _count_tracks(self, kept: Enforced, constraints: Constraints) -> None:
        self.scalars |= {
            "must_link": constraints.num_linked,
            "cannot_link": len(constraints.apart),
            "violations": kept.violations,
            "repaired": kept.repaired,
        }
        logger.info(
            "CLUSTER.TRACKS: %d pairs of images are one person, %d pairs of tracks are two; %d of these were in one "
            "cluster, and %d clusters were cut; %d tracks had several labels",
            constraints.num_linked,
            len(constraints.apart),
            kept.violations,
            kept.repaired,
            kept.split,
        )

    def _graph(self, features: Tensor) -> sparse.csr_array | None:
        """In the first process."""
        k1 = min(choose_k1(len(features)) if self.auto_k1 else self.k1, len(features) - 1)
        if self.auto_k1:
            self.scalars["k1"] = k1
            logger.info("CLUSTER.AUTO_K1 chose %d neighbours for %d images", k1, len(features))
        elif k1 < self.k1:
            logger.warning("CLUSTER.K1 %d exceeds what %d images can have; using %d", self.k1, len(features), k1)
        with self.stage("neighbors"):
            ranks = shared_ranks(features, k1, method=self.neighbors, device=self.device)
        if not comm.is_main_process():
            return None
        with self.stage("jaccard"):
            k2 = min(self.k2, k1)
            return jaccard_graph(features, ranks, k1=k1, k2=k2, max_distance=self.max_distance, device=self.device)

    def _camera_graph(self, features: Tensor, cameras: Tensor) -> sparse.csr_array:
        if (cameras < 0).any():
            raise InputError(
                "CLUSTER.DISTANCE ca_jaccard needs the camera of every image, and they are not known; set it to "
                "jaccard, or DATASETS.FOLDER.CAMERAS so that they are"
            )
        sizes = {name: min(size, len(features) - 1) for name, size in self.camera_sizes.items()}
        with self.stage("jaccard"):
            return camera_jaccard_graph(
                features, cameras, max_distance=self.max_distance, device=self.device, progress=_searching, **sizes
            )


def _gather(part: Tensor) -> Tensor:
    return torch.cat(comm.all_gather(part))


def shared_ranks(
    features: Tensor,
    k1: int,
    *,
    method: str,
    device: str | None = None,
    gather: Callable[[Tensor], Tensor] = _gather,
) -> Tensor:
    """(N, k1) int32 neighbours of all images, on the CPU; each process searches for its share of them.

    ``gather`` joins the parts of the processes.
    """
    rank, size, num_images = comm.get_rank(), comm.get_world_size(), len(features)
    _, indices = k_nearest(
        features,
        k1,
        device=device,
        method=method,
        queries=slice(num_images * rank // size, num_images * (rank + 1) // size),
        gather=gather,
        progress=_searching if comm.is_main_process() else iter,
    )
    return gather(indices.cpu().int())


def check_tracks(known: ImageTable) -> None:
    """
    Raises:
        InputError: there are images, and no track of them is known.
    """
    if len(known) and (known.tracks < 0).all():
        raise InputError(
            "CLUSTER.TRACKS needs tracks, and no image has one; set it to False, or DATASETS.FOLDER.METADATA so that "
            "tracks are known"
        )


@CLUSTERER_REGISTRY.register()
class JaccardDBSCAN(JaccardClusterer):
    """DBSCAN on the sparse k-reciprocal Jaccard graph, the clustering of ICE, DCMIP and similar methods.

    Args:
        eps: radius in (0, 1]; an image with ``min_samples`` images within it is a core image.
        auto_eps: instead of using ``eps``, choose the radius from the graph at each call, without true identities; see
            ``choose_eps``. The graph then keeps every pair below distance 1, and takes several times the memory.
        graph: keywords of ``JaccardClusterer``.
    """

    if_all_noise = "raise CLUSTER.EPS"
    if_one_cluster = "lower CLUSTER.EPS"

    def __init__(self, *, eps: float, auto_eps: bool = False, **graph) -> None:
        super().__init__(max_distance=1.0 if auto_eps else eps, **graph)
        self.eps = eps
        self.auto_eps = auto_eps

    @classmethod
    def from_config(cls, cfg: CfgNode) -> JaccardDBSCAN:
        return cls(eps=cfg.CLUSTER.EPS, auto_eps=cfg.CLUSTER.AUTO_EPS, **cls.graph_keywords(cfg))

    def partition(self, graph: sparse.csr_array) -> np.ndarray:
        eps = self.eps
        if self.auto_eps:
            with self.stage("eps"):
                eps, self.sweep = choose_eps(graph, min_samples=self.min_samples)
            self.scalars["eps"] = eps
            logger.info("CLUSTER.AUTO_EPS chose the radius %.3f", eps)
        self.radius = eps
        with self.stage("dbscan"):
            return dbscan(graph, eps=eps, min_samples=self.min_samples)
