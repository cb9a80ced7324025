"""A clustering that nobody should train on unseen: one giant cluster, or nearly all noise; with the keys to change."""

from __future__ import annotations

import numpy as np
from fastreid.config import CfgNode

from ..core import choose_k1

ENOUGH = 100  # images; of fewer, one person can well have a large share
GIANTS = ((0.5, 3), (0.2, 10))  # (share of all images, multiple of the median of the other clusters): above both
NOISE_SHARE = 0.8


def describe_doubt(labels: np.ndarray, cfg: CfgNode) -> str:
    """One sentence about a clustering with a giant cluster or nearly all noise, "" about any other.

    A cluster is a giant if it holds more than half of the images and more than three times as many as the median of the
    other clusters, or more than a fifth and more than ten times as many; so a few people with equally many images are
    none. Nearly all noise is more than 80 %. With fewer than 100 images there is no doubt. True identities
    (``GroundTruth``) are beyond doubt.

    Args:
        labels: (N,) integers, -1 for noise.
        cfg: the config that was clustered with; the sentence names its keys and their values.
    """
    sizes = np.sort(np.unique(labels[labels >= 0], return_counts=True)[1])
    total, noise = len(labels), int(np.count_nonzero(labels < 0))
    if total < ENOUGH or cfg.CLUSTER.NAME == "GroundTruth":
        return ""
    if noise > NOISE_SHARE * total:
        return f"{noise} of {total} images ({noise / total:.0%}) are in no cluster: {_against_noise(cfg, total)}"
    others = float(np.median(sizes[:-1])) if len(sizes) > 1 else 0
    if any(sizes[-1] > share * total and sizes[-1] > factor * others for share, factor in GIANTS):
        beside = f"the median of the others is {others:g}" if others else "and there is no other"
        return (
            f"One cluster holds {sizes[-1]} of {total} images ({sizes[-1] / total:.0%}), {beside}; probably it mixes "
            f"several identities: {_against_giants(cfg, total)}"
        )
    return ""


def _against_giants(cfg: CfgNode, total: int) -> str:
    node = cfg.CLUSTER
    if node.NAME == "KMeans":
        return f"raise CLUSTER.NUM_CLUSTERS ({node.NUM_CLUSTERS})"
    if node.NAME not in ("JaccardDBSCAN", "HDBSCAN"):
        return f"change the keys of CLUSTER.NAME {node.NAME}"
    keys = _neighbours(cfg, total)
    if node.NAME == "JaccardDBSCAN" and not node.AUTO_EPS:
        return f"lower CLUSTER.EPS ({node.EPS:g}) or {keys}, or let CLUSTER.AUTO_EPS True choose the radius"
    return f"lower {keys}, or start from better weights (MODEL.WEIGHTS)"


def _against_noise(cfg: CfgNode, total: int) -> str:
    node = cfg.CLUSTER
    if node.NAME not in ("JaccardDBSCAN", "HDBSCAN"):
        return f"change the keys of CLUSTER.NAME {node.NAME}"
    keys = _neighbours(cfg, total)
    if node.NAME == "HDBSCAN":
        return f"lower CLUSTER.MIN_CLUSTER_SIZE ({node.MIN_CLUSTER_SIZE}), or raise {keys}"
    if not node.AUTO_EPS:
        return f"raise CLUSTER.EPS ({node.EPS:g}) or {keys}, or let CLUSTER.AUTO_EPS True choose the radius"
    return f"raise {keys}, or start from better weights (MODEL.WEIGHTS)"


def _neighbours(cfg: CfgNode, total: int) -> str:
    """The key of the neighbours, with its value for a set of ``total`` images."""
    sizes = cfg.CLUSTER.CA_JACCARD
    if cfg.CLUSTER.DISTANCE == "ca_jaccard":
        return f"CLUSTER.CA_JACCARD.K1_INTER ({sizes.K1_INTER}) and K1_INTRA ({sizes.K1_INTRA})"
    if cfg.CLUSTER.AUTO_K1:
        return f"CLUSTER.K1 ({choose_k1(total)}, which CLUSTER.AUTO_K1 chose)"
    return f"CLUSTER.K1 ({cfg.CLUSTER.K1})"
