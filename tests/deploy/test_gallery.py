"""Rankings of a gallery against brute force: cameras, thresholds, re-ranking, and faiss's inverted file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dense import jaccard_by_definition
from fastreid_ice import InputError
from fastreid_ice.core import CameraStatistics, camera_reranked_blocks, k_nearest
from fastreid_ice.deploy.index import ImageIndex, Origin
from fastreid_ice.deploy.search import Gallery
from support import small_config

ORIGIN = Origin("/run", "/run/model_final.pth", [], "f", "/images", "", {"all": None, "other cameras": None}, "id")


def units(count: int, people: int, seed: int = 0) -> np.ndarray:
    """(N, 24) unit rows around the directions of some people."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(people, 24))
    rows = centres[rng.integers(people, size=count)] + 0.8 * rng.normal(size=(count, 24))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def make_gallery(folder: Path, features: np.ndarray, cameras: list[str], **limit: int) -> Gallery:
    paths = [f"/images/{row}.jpg" for row in range(len(features))]
    ImageIndex(paths, cameras, np.zeros((len(paths), 2), np.int64), features, ORIGIN).write(folder / "index", **limit)
    return Gallery(folder / "index")


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """200 images in the cameras a, b and one that is not known."""
    return make_gallery(tmp_path_factory.mktemp("gallery"), units(200, 12), ["a", "b", "b", ""] * 50)


def brute_force(gallery: Gallery, query: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The allowed rows, the most similar first."""
    cosines = gallery.index.features.astype(float) @ query.astype(float)
    order = np.argsort(-cosines, kind="stable")
    return order[allowed[order]]


def test_rankings_are_those_of_brute_force(gallery: Gallery) -> None:
    queries = np.concatenate([units(5, 12, seed=1), gallery.index.features[[7, 11]]])
    own = np.array([-1] * 5 + [7, 11])
    cameras, asked = np.array(gallery.index.cameras), ["a", "b", "a", "c", "b", "", "b"]
    everywhere = gallery.search(queries, top_k=30, own=own)
    elsewhere = gallery.search(queries, top_k=30, own=own, cameras=asked, other_cameras=True)
    for q, query in enumerate(queries):
        allowed = np.arange(200) != own[q]
        np.testing.assert_array_equal(everywhere[q].rows, brute_force(gallery, query, allowed)[:30])
        np.testing.assert_allclose(
            everywhere[q].similarities, gallery.index.features[everywhere[q].rows] @ query, atol=1e-6
        )
        np.testing.assert_array_equal(everywhere[q].distances, 1 - everywhere[q].similarities)
        allowed &= (cameras != asked[q]) & (cameras != "")
        np.testing.assert_array_equal(elsewhere[q].rows, brute_force(gallery, query, allowed)[:30])
    assert everywhere[5].rows[0] != 7 and len(gallery.search(queries, top_k=999, own=own)[5].rows) == 199


def test_standardised_features(gallery: Gallery) -> None:
    """Gallery and queries by the gallery's statistics: also a query whose camera is new, or not known."""
    standardised = Gallery(gallery.folder, camera_norm=True)
    queries, asked = units(4, 12, seed=1), ["a", "b", "new", ""]
    codes = {"a": 0, "b": 1, "": 2, "new": 3}
    cameras = np.array([codes[name] for name in gallery.index.cameras])
    statistics = CameraStatistics.of(gallery.index.features, cameras)
    rows = statistics.standardize(gallery.index.features, cameras)
    own = statistics.standardize(queries, np.array([codes[name] for name in asked]))
    found = standardised.search(queries, top_k=20, cameras=asked)
    for ranking, cosines in zip(found, (own @ rows.T).numpy(), strict=True):
        np.testing.assert_array_equal(ranking.rows, np.argsort(-cosines, kind="stable")[:20])
        np.testing.assert_allclose(ranking.similarities, cosines[ranking.rows], atol=1e-6)
    assert any(
        (one.rows != other.rows).any() for one, other in zip(found, gallery.search(queries, top_k=20), strict=True)
    )
    reranked = standardised.search(queries, top_k=20, cameras=asked, rerank=small_config().TEST.RERANK)
    assert all((np.diff(ranking.distances) >= 0).all() for ranking in reranked)
    with pytest.raises(InputError, match="--threshold 90% is estimated for features as they are; with --camera-norm"):
        standardised.threshold(0.9)


def test_a_threshold_and_no_result(gallery: Gallery) -> None:
    (query,) = units(1, 12, seed=2)
    cosines = gallery.index.features @ query
    (found,) = gallery.search(query[None], top_k=200, threshold=0.5)
    assert set(found.rows) == set(np.flatnonzero(cosines >= 0.5)) and 0 < len(found.rows) < 100
    assert len(gallery.search(query[None], top_k=5, threshold=0.5)[0].rows) == 5
    assert len(gallery.search(query[None], threshold=1.0)[0].rows) == 0
    assert len(gallery.search(query[None], top_k=200, cameras=["a"], other_cameras=True)[0].rows) == 100


def test_equal_images_are_ranked_by_row(tmp_path: Path) -> None:
    gallery = make_gallery(tmp_path, units(1, 3).repeat(9, 0), ["1"] * 9)
    assert gallery.search(units(2, 3))[1].rows.tolist() == list(range(9))


@pytest.mark.parametrize("distance", ["jaccard", "ca_jaccard"])
def test_reranking_is_that_of_the_evaluation_of_this_query(gallery: Gallery, distance: str) -> None:
    node = small_config(TEST__RERANK__DISTANCE=distance, TEST__RERANK__K1=15, TEST__RERANK__LAMBDA=0.4).TEST.RERANK
    queries = units(3, 12, seed=3)
    found = gallery.search(queries, top_k=200, rerank=node, cameras=["a", "b", ""])
    alone = gallery.search(queries[1:2], top_k=200, rerank=node, cameras=["b"])
    np.testing.assert_array_equal(found[1].rows, alone[0].rows)
    cameras = np.unique(gallery.index.cameras, return_inverse=True)[1]
    for query, camera, ranking in zip(queries, (1, 2, 0), found, strict=True):
        together = np.concatenate([query[None], gallery.index.features])
        if distance == "jaccard":
            ranks = k_nearest(together, 15)[1].numpy()
            jaccard = jaccard_by_definition(together.astype(float), ranks, 15, node.K2)[0, 1:]
            expected = 0.6 * jaccard + 0.4 * (1 - gallery.index.features @ query)
        else:
            sizes = {name.lower(): size for name, size in node.CA_JACCARD.items()}
            blocks = camera_reranked_blocks(
                query[None], gallery.index.features, np.array([camera]), cameras, **sizes, distance_weight=0.4
            )
            expected = torch.cat(list(blocks))[0].numpy()
        np.testing.assert_allclose(ranking.distances, np.sort(expected), atol=1e-5)
        np.testing.assert_allclose(ranking.distances, expected[ranking.rows], atol=1e-5)
        np.testing.assert_allclose(ranking.similarities, gallery.index.features[ranking.rows] @ query, atol=1e-6)
    plain = gallery.search(queries, top_k=200)
    assert any((a.rows != b.rows).any() for a, b in zip(found, plain, strict=True)), "re-ranking changes something"


@pytest.mark.parametrize("distance", ["jaccard", "ca_jaccard"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_reranking_of_few_images(tmp_path: Path, distance: str, count: int) -> None:
    gallery = make_gallery(tmp_path, units(count, 3), ["a"] * count)
    node = small_config(TEST__RERANK__DISTANCE=distance).TEST.RERANK
    (found,) = gallery.search(units(1, 3, seed=1), rerank=node, cameras=["b"])
    assert sorted(found.rows) == list(range(count)) and np.isfinite(found.distances).all()


def test_the_inverted_file_finds_almost_all(tmp_path: Path) -> None:
    """With a limit of 1,000 rows: at least 90 % of the ten nearest, cameras kept apart; without the file, all."""
    features, queries = units(5000, 300), units(100, 300, seed=1)
    gallery = make_gallery(tmp_path, features, ["a", "b"] * 2500, exact_rows=1000)
    assert len(list(gallery.folder.glob("cells-*.faiss"))) == 1
    expected = np.argsort(-features @ queries.T, axis=0)[:10].T

    def recall(rankings: list) -> float:
        return np.mean([len(set(one.rows) & set(best)) for one, best in zip(rankings, expected, strict=True)]) / 10

    found = gallery.search(queries)
    assert type(gallery._faiss).__name__ == "IndexIVFFlat" and 0.9 <= recall(found) < 1
    for one, query in zip(found, queries, strict=True):
        np.testing.assert_allclose(one.similarities, features[one.rows] @ query, atol=1e-6)
    odd = gallery.search(queries[:3], cameras=["a", "b", "a"], other_cameras=True)
    assert [set(one.rows % 2) for one in odd] == [{1}, {0}, {1}]
    assert len(gallery.search(queries[:1], rerank=small_config().TEST.RERANK, cameras=["a"])[0].rows) == 10
    next(gallery.folder.glob("cells-*.faiss")).unlink()
    exact = Gallery(gallery.folder).search(queries)
    assert recall(exact) == 1


def test_what_is_refused(gallery: Gallery) -> None:
    with pytest.raises(InputError, match="--top-k 0 must be at least 1"):
        gallery.search(units(1, 3), top_k=0)
    with pytest.raises(InputError, match="the queries have 5 dimensions"):
        gallery.search(np.eye(5, dtype=np.float32))
    with pytest.raises(
        InputError, match="--threshold 90%: the run /run has no cluster with two images that still exist"
    ):
        gallery.threshold(0.9)
    with pytest.raises(InputError, match="images of two known cameras"):
        gallery.threshold(0.9, other_cameras=True)
    with pytest.raises(InputError, match="the encoder of .*index is not as it was .*/run holds no config.yaml"):
        gallery.encoder()
