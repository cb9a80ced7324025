"""The clusterer protocol, the registry, and ``build_clusterer(cfg)``."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.utils import comm
from fastreid.utils.registry import Registry
from scipy import sparse
from torch import Tensor

from ..config import lookup
from ..core import Clusters, Constraints, Enforced, EpsSweep, ImageTable, centroids, enforce_constraints, k_nearest
from ..errors import InputError

CLUSTERER_REGISTRY = Registry("CLUSTERER")
CLUSTERER_REGISTRY.__doc__ = """Clusterers. A registered class is a ``Clusterer``, built by ``cls.from_config(cfg)``."""

logger = logging.getLogger(f"fastreid.{__name__}")

NEIGHBORS = 30  # of an image in the graph along which a cluster is cut that has no graph of its own


class Clusterer:
    """Base of all clusterers. Every process calls it with the same training set and gets the labels of the first one.

    Attributes:
        if_all_noise, if_one_cluster: advice to the user if that is the result, epoch after epoch.
        shared: whether the processes share the work, so that ``labels`` runs in all of them; by default it runs only
            in the first.
        needs_cameras: whether it refuses images whose camera is not known, with an InputError.
        needs_tracks: whether it refuses images of which no track is known, with an InputError.
        keeps_corrections: whether ``labels`` keeps ``known.corrections`` itself; otherwise they are enforced on its
            labels.
        order_matters: whether another order of the images may give other clusters even for people who are easy to tell
            apart, for example if a start is drawn at random; ``fastreid_ice.testing`` compares two orders otherwise.
        seconds: the time of each stage of the last call in this process, by name.
        scalars: what the last call in the first process chose or counted, such as "eps", by the name in the log.
        sweep: the radii that the last call in the first process compared, None if it compared none.
    """

    if_all_noise = if_one_cluster = "choose another CLUSTER.NAME"
    shared = False
    needs_cameras = needs_tracks = keeps_corrections = order_matters = False

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.scalars: dict[str, float] = {}
        self.sweep: EpsSweep | None = None

    def __init_subclass__(cls, **keywords: object) -> None:
        """
        Raises:
            InputError: ``labels`` takes something else, such as the cameras and identities that it once got.
        """
        super().__init_subclass__(**keywords)
        signature = inspect.signature(cls.labels)
        try:
            signature.bind("self", "features", "known")
        except TypeError as error:
            raise InputError(
                f"{cls.__name__}.labels takes {', '.join(list(signature.parameters)[1:])}; write "
                "labels(self, features, known), where known.cameras are the cameras (see CHANGELOG.md)"
            ) from error

    def labels(self, features: Tensor, known: ImageTable) -> Tensor | None:
        """(N,) int64 labels, -1 for noise, else 0..C-1. Only ``GroundTruth`` may look at ``known.identities``.

        If ``shared``, what processes other than the first return is ignored.
        """
        raise NotImplementedError

    def __call__(self, features: Tensor, known: ImageTable) -> Clusters:
        """Clusters a training set of N images; called in all processes at once.

        Args:
            features: (N, D) unit rows.
            known: what is known of each image; true identities are only for the upper bound.
        """
        self.seconds, self.scalars, self.sweep = {}, {}, None
        labels = self.labels(features, known) if self.shared or comm.is_main_process() else None
        if labels is not None and known.corrections is not None and not self.keeps_corrections:
            labels = self._corrected(labels, features, known.corrections)
        return Clusters(comm.all_gather(labels if comm.is_main_process() else None)[0], features, known)

    def _corrected(self, labels: Tensor, features: Tensor, corrections: Constraints) -> Tensor:
        """``labels`` that keep the corrections; a cluster is cut at the weakest link by cosine."""
        with self.stage("corrections"):
            found = labels.cpu().numpy()
            graph = _cosine_graph(features, found, corrections)
            # A single image that is left over is noise.
            offsets = centroid_offsets(features, labels)
            kept = enforce_constraints(found, graph, corrections, offsets=offsets, min_size=2)
        self.count(kept, corrections)
        return torch.from_numpy(kept.labels)

    def count(self, kept: Enforced, constraints: Constraints, overruled: int = 0) -> None:
        """Logs what a person's corrections changed, and keeps it in ``scalars``."""
        self.scalars |= {
            "violations": kept.violations,
            "repaired": kept.repaired,
            "corrections_joined": kept.joined,
            "corrections_nobody": int(constraints.nobody.sum()),
            "corrections_overruled": overruled,
        }
        logger.info(
            "CORRECTIONS: %d people were in several clusters or in noise, and are now in one; %d pairs of two people "
            "were in one cluster, and %d clusters were cut; %d images show nobody; %d facts of tracks were overruled",
            kept.joined,
            kept.violations,
            kept.repaired,
            constraints.nobody.sum(),
            overruled,
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures and logs the time of the stage ``name``, so that the log shows how far a long clustering is."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        logger.info("Clustering: %s took %.1f s", name, self.seconds[name])


def centroid_offsets(features: Tensor, labels: Tensor) -> np.ndarray:
    """(N,) 1 - cosine between each row and the centroid of its cluster, 0 for noise."""
    offsets = torch.zeros(len(labels))
    rows = (labels >= 0).nonzero()[:, 0]
    if len(rows):
        units, own = features[rows].float(), labels[rows].to(features.device)
        offsets[rows.cpu()] = 1 - (units * F.normalize(centroids(units, own))[own]).sum(1).cpu()
    return offsets.numpy()


def _cosine_graph(features: Tensor, labels: np.ndarray, constraints: Constraints) -> sparse.csr_array:
    """(N, N) half of 1 - cosine between near images of the clusters in which a forbidden pair may be."""
    touched = np.isin(constraints.groups, constraints.apart) | constraints.certain[constraints.groups]
    rows = np.flatnonzero(np.isin(labels, labels[touched & (labels >= 0)]))
    shape = (len(labels), len(labels))
    if not len(rows):
        return sparse.csr_array(shape, dtype=np.float32)
    cosines, near = k_nearest(features[torch.from_numpy(rows)], min(NEIGHBORS, len(rows)))
    distances = ((1 - cosines) / 2).clamp(1e-6, 1).cpu().numpy().ravel()
    ends = rows.repeat(near.shape[1]), rows[near.cpu().numpy().ravel()]
    graph = sparse.csr_array((distances, ends), shape=shape)
    return graph.maximum(graph.T)


def build_clusterer(cfg: CfgNode) -> Clusterer:
    """The clusterer that ``CLUSTER.NAME`` names.

    Raises:
        InputError: the name is not registered.
    """
    return lookup(CLUSTERER_REGISTRY, cfg.CLUSTER.NAME, "CLUSTER.NAME").from_config(cfg)
