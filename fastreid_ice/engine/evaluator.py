"""Evaluation of one or both encoders. Ranking and re-ranking need neither all distances at once nor a compiler."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.evaluation import ReidEvaluator
from fastreid.evaluation.roc import evaluate_roc
from fastreid.utils import comm
from sklearn.metrics import roc_curve
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..core import camera_reranked_blocks, k_nearest, standardize_by_camera
from ..core.jaccard import jaccard_weights
from ..core.retrieval import distance_blocks, expand_features, rank_blocks, reranked_blocks
from ..errors import InputError
from ..progress import progress
from .features import encode_images

logger = logging.getLogger(f"fastreid.{__name__}")


def evaluate_encoders(
    model: nn.Module,
    loader: DataLoader,
    evaluator: ReidEvaluator,
    encoders: Sequence[str],
    *,
    dataset: str,
    amp: bool = False,
    flip: bool = False,
) -> OrderedDict[str, Any]:
    """Evaluates encoders in one pass over the test images, and logs a table with a row for each.

    Args:
        model: a ``MomentumReID``.
        loader: this process's part of the test images, from ``build_test_loader``.
        evaluator: computes the metrics of these images.
        encoders: "online", "momentum" or both; the first chooses the best weights.
        dataset: its name, for the log.
        amp, flip: as for ``encode_images``.

    Returns:
        The metrics of the first encoder under the evaluator's names, those of the other one as ``online/mAP`` or
        ``momentum/mAP``; empty except in the main process.
    """
    title = f"Evaluating {' and '.join(encoders)} features"
    features, columns = encode_images(model, loader, encoders, title=title, amp=amp, flip=flip)
    found = {}
    for encoder in encoders:
        evaluator.reset()
        if columns:
            evaluator.process(columns, features.pop(encoder))
        found[encoder] = evaluator.evaluate()
    if comm.is_main_process():
        rows = [[f"{dataset}, {encoder}", *metrics.values()] for encoder, metrics in found.items()]
        table = tabulate(rows, ["Dataset, encoder", *found[encoders[0]]], "pipe", floatfmt=".2f", numalign="left")
        logger.info("Evaluation:\n%s", table)
    first, *others = encoders
    return OrderedDict(found[first]) | {
        f"{encoder}/{name}": value for encoder in others for name, value in found[encoder].items()
    }


class BlockedReidEvaluator(ReidEvaluator):
    """ReidEvaluator with the same keys and, except for rounding, the same metrics. Images at equal distance, whose
    order ReidEvaluator leaves to an unstable sort, are ranked by index.

    Distances are computed for a block of queries at a time, on the device of the model. ``TEST.CAMERA_NORM`` first
    standardises features within each camera, those of query and gallery together. ``TEST.AQE`` searches
    neighbours without all similarities, and ``TEST.RERANK`` keeps the Jaccard distances sparse. Two settings still hold
    all distances at once: ``TEST.ROC``, which needs them, and ``TEST.RERANK`` with the Euclidean ``TEST.METRIC``, which
    is left to fast-reid.
    """

    def __init__(self, cfg: CfgNode, num_query: int, output_dir: str | None = None) -> None:
        super().__init__(cfg, num_query, output_dir)
        self._device = torch.device(cfg.MODEL.DEVICE)

    def evaluate(self) -> OrderedDict[str, Any]:
        """Rank-1, -5 and -10, mAP, mINP and their summary, in percent; empty except in the main process.

        Raises:
            InputError: a number of ``TEST.RERANK``, or ``TEST.AQE.QE_K``, does not fit the test set.
            ValueError: features are not finite, or no query has a true match.
        """
        test = self.cfg.TEST
        if test.RERANK.ENABLED and test.METRIC != "cosine":
            return super().evaluate()
        predictions = self._predictions
        if comm.get_world_size() > 1:
            comm.synchronize()
            predictions = list(chain(*comm.gather(predictions, dst=0)))
        if not comm.is_main_process():
            return OrderedDict()
        features, people, cameras = (
            torch.cat([prediction[name] for prediction in predictions]) for name in ("feats", "pids", "camids")
        )
        if test.CAMERA_NORM:
            features = standardize_by_camera(F.normalize(features), cameras)
        if test.AQE.ENABLED:
            features = self._expand(features)
        columns = (*self._halves(people), *self._halves(cameras))
        blocks = self._distances(features, cameras)
        if test.ROC.ENABLED:
            blocks = list(blocks)
        ranked = rank_blocks(blocks, *columns)

        mean_precision, mean_penalty = ranked.average_precision.mean(), ranked.inverse_negative_penalty.mean()
        results = OrderedDict((f"Rank-{r}", ranked.cmc[r - 1] * 100) for r in (1, 5, 10))
        results["mAP"] = mean_precision * 100
        results["mINP"] = mean_penalty * 100
        results["metric"] = (mean_precision + ranked.cmc[0]) / 2 * 100
        if test.ROC.ENABLED:
            distances = torch.cat(blocks).cpu().numpy()
            scores, labels = evaluate_roc(distances, *(column.numpy() for column in columns))
            false_positives, true_positives, _ = roc_curve(labels, scores)
            for rate in (1e-4, 1e-3, 1e-2):
                results[f"TPR@FPR={rate:.0e}"] = true_positives[np.abs(false_positives - rate).argmin()]
        return results

    def _halves(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return values[: self._num_query], values[self._num_query :]

    def _expand(self, features: Tensor) -> Tensor:
        expansion: CfgNode = self.cfg.TEST.AQE
        try:
            for _ in range(expansion.QE_TIME):
                searching = partial(progress, title="Expanding queries")
                features = expand_features(
                    features, expansion.QE_K, alpha=expansion.ALPHA, device=self._device, progress=searching
                )
        except ValueError as error:
            raise InputError(
                f"TEST.AQE, with QE_K {expansion.QE_K} and a test set of {len(features)} images: {error}"
            ) from error
        return features

    def _distances(self, features: Tensor, cameras: Tensor) -> Iterator[Tensor]:
        """(Q, G) in blocks of queries, re-ranked if ``TEST.RERANK`` is enabled."""
        queries, gallery = self._halves(features)
        ranking = partial(progress, title="Ranking queries")
        blocks = distance_blocks(queries, gallery, metric=self.cfg.TEST.METRIC, device=self._device, progress=ranking)
        rerank: CfgNode = self.cfg.TEST.RERANK
        if not rerank.ENABLED:
            return blocks
        sizes = {"K1": rerank.K1, "K2": rerank.K2} if rerank.DISTANCE == "jaccard" else rerank.CA_JACCARD
        try:
            if rerank.DISTANCE == "jaccard":
                return self._rerank(blocks, features)
            return camera_reranked_blocks(
                queries,
                gallery,
                *self._halves(cameras),
                **{name.lower(): size for name, size in sizes.items()},
                distance_weight=rerank.LAMBDA,
                device=self._device,
                progress=partial(progress, title="Searching neighbors"),
            )
        except ValueError as error:
            numbers = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise InputError(
                f"TEST.RERANK, with {numbers} and a test set of {len(features)} images: {error}"
            ) from error

    def _rerank(self, blocks: Iterator[Tensor], features: Tensor) -> Iterator[Tensor]:
        rerank: CfgNode = self.cfg.TEST.RERANK
        searching = partial(progress, title="Searching neighbors")
        _, ranks = k_nearest(features, rerank.K1, device=self._device, progress=searching)
        weights = jaccard_weights(features, ranks, k1=rerank.K1, k2=rerank.K2)
        return reranked_blocks(blocks, weights, distance_weight=rerank.LAMBDA)
