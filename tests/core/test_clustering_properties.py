"""The core chain on examples drawn by hypothesis, against scikit-learn and dense matrices.

Few points, with distances and features drawn from few values: copies, ties and empty rows are common.
The examples are the same in every run.
"""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from dense import dense, jaccard_by_definition, sklearn_labels
from fastreid_ice.core import dbscan, jaccard_graph, k_nearest

many = settings(derandomize=True, deadline=None, max_examples=200)

# Decimals that float32 rounds up (0.1, 0.6, 0.55) and down (0.3, 0.7, 0.9), exact halves, neighbouring floats.
TIES = [0.0, 1e-50, 1e-7, 0.1, 0.25, 0.3, 0.5, 0.55, 0.6, 0.7, 0.9, 1.0]
TIES += [float(np.nextafter(np.float32(value), np.float32(side))) for value in (0.3, 0.55, 0.6) for side in (0, 1)]
TIES += [float(np.nextafter(value, side)) for value in (0.3, 0.55, 0.6, 1.0) for side in (0.0, 1.0)]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[sparse.csr_array, float]:
    """A graph of up to 24 points and an eps, which is often one of its distances before their rounding.

    Symmetric or not, from nearly empty to full, with explicit zeros, gaps in the diagonal and copies of a point.
    """
    distances = draw(st.lists(st.one_of(st.sampled_from(TIES), st.floats(0, 1)), min_size=1, max_size=4))
    eps = draw(st.one_of(st.sampled_from([*distances, 0.5]), st.sampled_from(TIES), st.floats(0, 1)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_points = draw(st.integers(0, 24))
    square = (num_points, num_points)
    values = random.choice(np.array(distances, draw(st.sampled_from([np.float32, np.float64]))), square)
    present = random.random(square) < draw(st.sampled_from([0.03, 0.08, 0.15, 0.3, 0.6, 1.0]))
    if draw(st.booleans()):
        values, present = np.maximum(values, values.T), present | present.T
    if draw(st.booleans()):  # the usual diagonal
        np.fill_diagonal(values, 0)
        np.fill_diagonal(present, True)
    if num_points and draw(st.booleans()):
        for one, other in random.integers(num_points, size=(3, 2)):
            for array in (values, present):
                array[one], array[:, one] = array[other], array[:, other]
    rows, columns = present.nonzero()
    return sparse.csr_array((values[rows, columns], (rows, columns)), shape=square), eps or 1.0


@many
@given(graph_and_eps=graphs(), min_samples=st.integers(1, 6))
def test_dbscan_gives_the_labels_of_scikit_learn(graph_and_eps, min_samples):
    graph, eps = graph_and_eps
    before = graph.copy()
    labels = dbscan(graph, eps=eps, min_samples=min_samples)
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, sklearn_labels(dense(graph), eps, min_samples))
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(graph, name), getattr(before, name))


@many
@given(graph_and_eps=graphs(), min_samples=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_dbscan_does_not_depend_on_how_the_graph_is_stored(graph_and_eps, min_samples, seed):
    """Entries in any order, in any format, and split in two parts that are summed."""
    graph, eps = graph_and_eps
    expected = dbscan(graph, eps=eps, min_samples=min_samples)
    entries = graph.tocoo()
    order = np.random.default_rng(seed).permutation(2 * graph.nnz)
    rows, columns = (np.concatenate([part, part])[order] for part in (entries.row, entries.col))
    halves = np.concatenate([entries.data, np.zeros_like(entries.data)])[order]
    split = sparse.coo_array((halves, (rows, columns)), shape=graph.shape)
    by_row = np.argsort(rows, kind="stable")
    indptr = np.concatenate([[0], np.bincount(rows, minlength=graph.shape[0]).cumsum()])
    unsummed = sparse.csr_array((halves[by_row], columns[by_row], indptr), shape=graph.shape)
    for same in (split, unsummed, sparse.csc_array(graph), sparse.csr_matrix(graph)):
        np.testing.assert_array_equal(dbscan(same, eps=eps, min_samples=min_samples), expected)


@st.composite
def feature_sets(draw: st.DrawFn, min_rows: int = 1) -> np.ndarray:
    """Up to 30 rows: from few whole numbers (copies, ties, opposite directions), or around few people, with copies."""
    num_rows = draw(st.integers(min_rows, 30))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        features = random.integers(-1, 2, (num_rows, 3))
        features[~features.any(1)] = 1
    else:
        people = random.normal(size=(draw(st.integers(1, 5)), 6))
        features = random.choice(people, num_rows) + 0.3 * random.normal(size=(num_rows, 6))
        features = random.choice(features, num_rows) if draw(st.booleans()) else features
    return features.astype(draw(st.sampled_from([np.float32, np.float64])))


@many
@given(features=feature_sets(), data=st.data())
def test_k_nearest_lists_the_most_similar(features, data):
    """The first ``k`` of all rows, sorted: the row itself, then by similarity, then by index."""
    k = data.draw(st.integers(1, len(features)), label="k")
    chunk_size = data.draw(st.integers(1, 30), label="chunk_size")
    similarities, indices = (part.numpy() for part in k_nearest(features, k, chunk_size=chunk_size))
    rows = features.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows @ rows.T
    keys = cosines.round(12)  # equal for copies, whose products a matrix multiplication may round differently
    np.fill_diagonal(keys, np.inf)
    expected = np.argsort(-keys, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(similarities, np.take_along_axis(cosines, expected, 1), rtol=0, atol=1e-6)


@many
@given(features=feature_sets(min_rows=3), data=st.data())
def test_the_chain_equals_dense_matrices(features, data):
    """From features to labels. eps lies between two of the distances, so that their rounding does not matter."""
    k1 = data.draw(st.integers(2, len(features)), label="k1")
    k2 = data.draw(st.integers(1, k1), label="k2")
    min_samples = data.draw(st.integers(1, 5), label="min_samples")
    ranks = k_nearest(torch.from_numpy(features), k1)[1].numpy()
    expected = jaccard_by_definition(features.astype(np.float64), ranks, k1, k2)
    graph = jaccard_graph(features, ranks, k1=k1, k2=k2)
    np.testing.assert_allclose(dense(graph), expected, rtol=0, atol=3e-6)

    steps = np.unique(np.append(expected, [0.0, 1.0]))
    gaps = np.flatnonzero(np.diff(steps) > 2e-5)
    gap = data.draw(st.sampled_from(gaps.tolist()), label="gap")
    eps = float(steps[gap : gap + 2].mean())
    labels = sklearn_labels(expected, eps, min_samples)
    np.testing.assert_array_equal(dbscan(graph, eps=eps, min_samples=min_samples), labels)
    near = jaccard_graph(features, ranks, k1=k1, k2=k2, max_distance=eps)
    np.testing.assert_array_equal(dbscan(near, eps=eps, min_samples=min_samples), labels)
