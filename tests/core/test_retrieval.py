"""Ranking in blocks against a loop over queries and reference metrics, and re-ranking against a dense matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from fastreid_ice.core import RankMetrics, rank_metrics
from fastreid_ice.core.retrieval import distance_blocks, expand_features, rank_blocks, reranked_blocks
from golden import load_golden


def loop(distances, query_ids, gallery_ids, query_cameras, gallery_cameras, max_rank):
    """One query after the other; equal distances in the order of the gallery."""
    cmc, precisions, penalties = np.zeros(max_rank), [], []
    for q, row in enumerate(distances):
        own = gallery_ids == query_ids[q]
        kept = [g for g in np.argsort(row, kind="stable") if not (own[g] and gallery_cameras[g] == query_cameras[q])]
        hits = [rank for rank, g in enumerate(kept) if own[g]]
        if hits:
            cmc[hits[0] :] += 1
            precisions.append(np.mean([(j + 1) / (h + 1) for j, h in enumerate(hits)]))
            penalties.append(len(hits) / (hits[-1] + 1))
    return cmc / max(len(precisions), 1), precisions, penalties


def assert_equal_figures(found: RankMetrics, expected: tuple) -> None:
    for got, wanted in zip((found.cmc, found.average_precision, found.inverse_negative_penalty), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)


def people(queries: int = 70, gallery: int = 300, dim: int = 16) -> list[torch.Tensor]:
    """Features, ids and cameras of 30 persons; some queries have no true match."""
    generator = torch.Generator().manual_seed(0)
    total = queries + gallery
    ids = torch.randint(0, 30, (total,), generator=generator)
    ids[:3] = 99
    cameras = torch.randint(0, 4, (total,), generator=generator)
    centres = torch.randn(100, dim, generator=generator)
    features = 3 * (centres[ids] + torch.randn(total, dim, generator=generator))
    return [part for values in (features, ids, cameras) for part in (values[:queries], values[queries:])]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("chunk_size", [1, 32, 256])
def test_equals_a_loop_over_queries(metric: str, chunk_size: int) -> None:
    queries, gallery, *identities = people()
    if metric == "cosine":
        distances = 1 - F.normalize(queries.double()) @ F.normalize(gallery.double()).T
    else:
        distances = torch.cdist(queries.double(), gallery.double())
    expected = loop(distances.numpy(), *(values.numpy() for values in identities), 50)
    assert len(expected[1]) == 67
    found = rank_metrics(queries, gallery, *identities, metric=metric, chunk_size=chunk_size)
    assert_equal_figures(found, expected)
    assert found.cmc.dtype == np.float32 and found.average_precision.dtype == np.float64


@pytest.mark.parametrize("name", ["random", "structured", "smallgallery", "longlist"])
def test_reference_figures(name: str) -> None:
    golden = load_golden(f"rank_eval_{name}")
    blocks = torch.from_numpy(golden["distmat"]).split(7)
    identities = [golden[key] for key in ("q_pids", "g_pids", "q_camids", "g_camids")]
    found = rank_blocks(blocks, *identities, max_rank=int(golden["max_rank"]))
    assert_equal_figures(found, (golden["fastreid_cmc"], golden["fastreid_ap"], golden["fastreid_inp"]))
    np.testing.assert_allclose(found.average_precision.mean(), golden["ice_mAP"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(rank_blocks(blocks, *identities, max_rank=100).cmc, golden["ice_cmc"], rtol=0, atol=1e-6)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_ties_rank_by_index(data: st.DataObject) -> None:
    """Few distinct distances, including negative ones and zeros of both signs; few persons and cameras."""
    queries, gallery = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 12))
    values = st.sampled_from([-0.5, -0.0, 0.0, 0.25, 1.0, np.inf])
    distances = np.array(
        data.draw(st.lists(values, min_size=queries * gallery, max_size=queries * gallery)), np.float32
    ).reshape(queries, gallery)
    few = [
        np.array(data.draw(st.lists(st.integers(0, most), min_size=size, max_size=size)))
        for most in (2, 1)
        for size in (queries, gallery)
    ]
    blocks = torch.from_numpy(distances).split(data.draw(st.integers(1, 5)))
    expected = loop(distances, *few, 5)
    if expected[1]:
        assert_equal_figures(rank_blocks(blocks, *few, max_rank=5), expected)
    else:
        with pytest.raises(ValueError, match="no query has an image of its person in the gallery that is from another"):
            rank_blocks(blocks, *few, max_rank=5)


def test_any_type_and_input_unchanged() -> None:
    queries, gallery, *identities = people()
    expected = rank_metrics(queries, gallery, *identities)
    copies = [values.clone() for values in (queries, gallery)]
    tracked = [values.clone().requires_grad_() for values in copies]
    for given_features in (tracked, [values.double() for values in copies], [values.numpy() for values in copies]):
        found = rank_metrics(*given_features, *(values.tolist() for values in identities))
        np.testing.assert_allclose(found.average_precision, expected.average_precision, rtol=0, atol=1e-6)
    assert torch.equal(queries, copies[0]) and torch.equal(gallery, copies[1])
    half = rank_metrics(queries.bfloat16(), gallery.bfloat16(), *identities)
    np.testing.assert_allclose(half.average_precision.mean(), expected.average_precision.mean(), atol=0.01)


@pytest.mark.gpu
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_gpu(metric: str) -> None:
    queries, gallery, *identities = people()
    expected = rank_metrics(queries, gallery, *identities, metric=metric)
    found = rank_metrics(queries, gallery, *identities, metric=metric, device="cuda")
    np.testing.assert_allclose(found.average_precision, expected.average_precision, rtol=0, atol=1e-3)
    np.testing.assert_allclose(found.average_precision.mean(), expected.average_precision.mean(), rtol=0, atol=1e-5)


def test_reranked_blocks_equal_the_dense_sum() -> None:
    """Images that share no weight are at distance 1, images with equal weights at distance 0."""
    queries, gallery, *_ = people()
    total = len(queries) + len(gallery)
    weights = np.random.default_rng(0).random((total, total), np.float32)
    weights[weights < 0.98] = 0
    weights[-5:] = weights[0]
    weights /= weights.sum(1, keepdims=True)
    shared = np.minimum(weights[: len(queries), None], weights[None, len(queries) :]).sum(2)
    jaccard = 1 - shared / (2 - shared)
    assert (jaccard == 1).any()
    np.testing.assert_allclose(jaccard[0, -5:], 0, atol=1e-6)
    distances = torch.cat(list(distance_blocks(queries, gallery)))
    blocks = reranked_blocks(distances.split(32), sparse.csr_array(weights), distance_weight=0.3)
    torch.testing.assert_close(torch.cat(list(blocks)), 0.7 * torch.from_numpy(jaccard) + 0.3 * distances)


def test_expansion_equals_a_loop_over_rows() -> None:
    features = people()[1].double()
    before = features.clone()
    units = F.normalize(features)
    expected = []
    for row in units:
        similarity, nearest = (units @ row).topk(7)
        expected.append((similarity[:, None] ** 2.5 * features[nearest]).mean(0))
    torch.testing.assert_close(expand_features(features, 7, alpha=2.5), torch.stack(expected))
    assert torch.equal(features, before)


def test_bad_input() -> None:
    queries, gallery, *identities = people()
    short = [identities[0][:-1], identities[1], identities[2][:-1], identities[3]]
    few = [identities[0], identities[1][:-1], identities[2], identities[3][:-1]]
    broken = gallery.clone()
    broken[4, 0] = torch.nan
    for change, message in (
        ({"metric": "jaccard"}, "metric must be one of cosine, euclidean, got 'jaccard'"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"max_rank": 0}, "max_rank must be at least 1, got 0"),
        ({"gallery_features": broken}, "gallery_features must be finite, but row 4 and 0 more of 300 are not"),
        ({"gallery_features": gallery[:, 1:]}, r"must be \(Q, D\) and \(G, D\), got \(70, 16\) and \(300, 15\)"),
        ({"query_ids": identities[0][:-1]}, r"query_ids and query_cameras must hold a value for each image"),
        (
            {"query_features": queries[:-1]},
            "there are ids of 70 queries, and distances of 69",
        ),
        (
            dict(zip(NAMES[2:], short, strict=True)),
            "ids of 69 queries and 300 gallery images, and distances of at least",
        ),
        (dict(zip(NAMES[2:], few, strict=True)), "ids of 70 queries and 299 gallery images"),
    ):
        arguments = dict(zip(NAMES, (queries, gallery, *identities), strict=True)) | change
        with pytest.raises(ValueError, match=message):
            rank_metrics(**arguments)


NAMES = ("query_features", "gallery_features", "query_ids", "gallery_ids", "query_cameras", "gallery_cameras")
