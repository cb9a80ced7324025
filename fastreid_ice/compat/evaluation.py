"""The evaluator, its ranking and its distances."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import fastreid.evaluation.evaluator
import fastreid.evaluation.rank
import fastreid.utils.compute_dist as compute_dist
import fastreid.utils.faiss_utils as faiss_utils
import numpy as np
import torch
from fastreid.evaluation import ReidEvaluator
from torch import nn

from ._registry import patch, replace

_inference_context = fastreid.evaluation.evaluator.inference_context
_inference_on_dataset = fastreid.evaluation.evaluator.inference_on_dataset
_evaluate_rank = fastreid.evaluation.rank.evaluate_rank
_jaccard_distance = compute_dist.compute_jaccard_distance

_QUERIES_AT_ONCE = 256


@patch
def no_compilation() -> None:
    """ReidEvaluator runs ``make`` in fastreid's folder, and exits the process if that fails: no Cython, no compiler, a
    folder that cannot be written to. This happens at the first evaluation, before any checkpoint.

    ``ranking`` needs nothing compiled. Until a failure is a warning.
    """
    ReidEvaluator._compile_dependencies = lambda self: None


@patch
def ranking() -> None:
    """The Python ranking fails when a query keeps fewer than 50 gallery images; the compiled one then reads values of
    the query before it.

    Until both handle a small gallery.
    """
    replace(_evaluate_rank, evaluate_rank)


@patch
def test_set_halves() -> None:
    """A test set without a query or without a gallery runs through the whole inference, then fails an assertion.

    Until ReidEvaluator says so before it starts.
    """
    replace(_inference_on_dataset, inference_on_dataset)


@patch
def module_modes() -> None:
    """After an evaluation ``model.train(True)`` sets frozen batch norms (LayerFreeze) back to training mode, and after
    a failed evaluation the whole model stays in eval mode.

    Until inference_context restores the mode of each module.
    """
    replace(_inference_context, inference_context)


@patch
def euclidean_distance() -> None:
    """compute_euclidean_distance calls addmm_ with numbers first, which torch has deprecated. Until it does not."""
    replace(compute_dist.compute_euclidean_distance, compute_euclidean_distance)


@patch
def rerank_without_gpu() -> None:
    """TEST.RERANK.ENABLED calls ``.cuda()``, and searches with a GPU index of faiss.

    If either is missing, the search runs on the CPU. Until fastreid checks what is available.
    """
    replace(_jaccard_distance, compute_jaccard_distance)


@patch
def faiss_pointers() -> None:
    """TEST.RERANK.ENABLED on a GPU: today's faiss has no cast_integer_to_long_ptr; and the pointers are taken through
    torch's deprecated typed storages.

    Until fastreid calls cast_integer_to_idx_t_ptr.
    """
    if not hasattr(faiss, "cast_integer_to_long_ptr"):
        faiss_utils.swig_ptr_from_FloatTensor = lambda x: faiss.cast_integer_to_float_ptr(x.data_ptr())
        faiss_utils.swig_ptr_from_LongTensor = lambda x: faiss.cast_integer_to_idx_t_ptr(x.data_ptr())


def evaluate_rank(
    distmat: np.ndarray,
    q_pids: np.ndarray,
    g_pids: np.ndarray,
    q_camids: np.ndarray,
    g_camids: np.ndarray,
    max_rank: int = 50,
    use_metric_cuhk03: bool = False,
    use_cython: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CMC, average precision and inverse negative penalty of each query, by ``core.retrieval.rank_blocks``.

    Args:
        distmat: (Q, G) distances, compared in float32.
        q_pids, g_pids: (Q,) and (G,) persons.
        q_camids, g_camids: (Q,) and (G,) cameras.
        max_rank: length of the CMC.
        use_metric_cuhk03: use fastreid's own function.
        use_cython: ignored: this is faster than the compiled ranking.

    Returns:
        (max_rank,) float32 CMC, and the APs and INPs of the queries that have a true match, all in [0, 1].

    Raises:
        ValueError: no query has a true match in another camera.
    """
    if use_metric_cuhk03:
        return _evaluate_rank(distmat, q_pids, g_pids, q_camids, g_camids, max_rank, True, use_cython)
    from ..core.retrieval import rank_blocks  # imported here, since those who apply the patches may not need core

    blocks = torch.as_tensor(distmat).split(_QUERIES_AT_ONCE)
    ranked = rank_blocks(blocks, q_pids, g_pids, q_camids, g_camids, max_rank=max_rank)
    return ranked.cmc, ranked.average_precision, ranked.inverse_negative_penalty


def inference_on_dataset(model: nn.Module, data_loader: Any, evaluator: Any, flip_test: bool = False) -> Any:
    """fastreid's ``inference_on_dataset``.

    Raises:
        ValueError: the test set has no query or no gallery.
    """
    images = len(data_loader.dataset)
    if isinstance(evaluator, ReidEvaluator) and not 0 < evaluator._num_query < images:
        queries = evaluator._num_query
        raise ValueError(f"the test set has {queries} query and {images - queries} gallery images: it needs both")
    return _inference_on_dataset(model, data_loader, evaluator, flip_test)


@contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each module has its previous mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def compute_euclidean_distance(features: torch.Tensor, others: torch.Tensor) -> np.ndarray:
    """Squared Euclidean distances (m, n) of features (m, D) and others (n, D)."""
    squares = features.square().sum(1, keepdim=True) + others.square().sum(1)
    return squares.addmm_(features, others.t(), alpha=-2).cpu().numpy()


def compute_jaccard_distance(
    features: torch.Tensor, k1: int = 20, k2: int = 6, search_option: int = 0, fp16: bool = False
) -> np.ndarray:
    """fastreid's ``compute_jaccard_distance``, searching on the CPU if torch or faiss has no GPU."""
    if not (torch.cuda.is_available() and getattr(faiss, "get_num_gpus", int)()):
        search_option = 3
    return _jaccard_distance(features, k1, k2, search_option, fp16)
