"""fast-reid's evaluator, with ranking and re-ranking that need neither all distances at once nor a compiler."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.evaluation import ReidEvaluator
from fastreid.evaluation.roc import evaluate_roc
from fastreid.utils import comm
from sklearn.metrics import roc_curve
from torch import Tensor

from ..core import jaccard_graph, k_nearest
from ..core.retrieval import distance_blocks, expand_features, rank_blocks, reranked_blocks
from ..errors import InputError
from ..progress import progress


class BlockedReidEvaluator(ReidEvaluator):
    """ReidEvaluator with the same keys and, but for rounding, the same figures. Images at equal distance, whose order
    it leaves to an unstable sort, are ranked by index.

    Distances are computed for a block of queries at a time, where the model is; ``TEST.AQE`` searches neighbors without
    all similarities, and ``TEST.RERANK`` keeps the Jaccard distances sparse. Two settings still hold all distances at
    once: ``TEST.ROC``, which needs them, and ``TEST.RERANK`` with the Euclidean ``TEST.METRIC``, where everything is
    fast-reid's.
    """

    _device = torch.device("cpu")

    def process(self, inputs: Mapping[str, Tensor], outputs: Tensor) -> None:
        self._device = outputs.device
        super().process(inputs, outputs)

    def evaluate(self) -> OrderedDict[str, Any]:
        """Rank-1, -5 and -10, mAP, mINP and their summary, in percent; empty but in the main process.

        Raises:
            InputError: ``TEST.RERANK.K1`` or ``K2``, or ``TEST.AQE.QE_K``, does not fit the test set.
            ValueError: features are not finite, or no query has a right image.
        """
        # Features may come from a network in lower precision; distances are computed in that of the features.
        with torch.autocast(self._device.type, enabled=False):
            return self._evaluate()

    def _evaluate(self) -> OrderedDict[str, Any]:
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
        if test.AQE.ENABLED:
            features = self._expand(features)
        queries, gallery = self._halves(features)

        searching = partial(progress, title="Ranking queries")
        blocks = distance_blocks(queries, gallery, metric=test.METRIC, device=self._device, progress=searching)
        if test.RERANK.ENABLED:
            blocks = self._rerank(blocks, features)
        if test.ROC.ENABLED:
            blocks = list(blocks)
        identities = (*self._halves(people), *self._halves(cameras))
        ranked = rank_blocks(blocks, *identities)

        mean_precision, mean_penalty = ranked.average_precision.mean(), ranked.inverse_negative_penalty.mean()
        results = OrderedDict((f"Rank-{r}", ranked.cmc[r - 1] * 100) for r in (1, 5, 10))
        results["mAP"] = mean_precision * 100
        results["mINP"] = mean_penalty * 100
        results["metric"] = (mean_precision + ranked.cmc[0]) / 2 * 100
        if test.ROC.ENABLED:
            distances = torch.cat(blocks).cpu().numpy()
            scores, labels = evaluate_roc(distances, *(array.numpy() for array in identities))
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

    def _rerank(self, blocks: Iterator[Tensor], features: Tensor) -> Iterator[Tensor]:
        rerank: CfgNode = self.cfg.TEST.RERANK
        try:
            searching = partial(progress, title="Searching neighbors")
            _, ranks = k_nearest(features, rerank.K1, device=self._device, progress=searching)
            graph = jaccard_graph(features, ranks, k1=rerank.K1, k2=rerank.K2)
        except ValueError as error:
            raise InputError(
                f"TEST.RERANK, with K1 {rerank.K1}, K2 {rerank.K2} and a test set of {len(features)} images: {error}"
            ) from error
        jaccard = graph[: self._num_query, self._num_query :]
        return reranked_blocks(blocks, jaccard, distance_weight=rerank.LAMBDA)
