"""The compiled loops of ``jaccard``; each computes a block of rows from sparse matrices given as CSR arrays.

A block returns the number of entries in each of its rows, then their columns, and their values if there are any. Each
loop releases the interpreter lock and adds in a fixed order. Scratch arrays of length N exist for one block at a time.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def mutual_of_block(start, stop, ranks):
    k = ranks.shape[1]
    counts = np.empty(stop - start, np.int64)
    columns = np.empty((stop - start) * k, ranks.dtype)
    filled = 0
    for i in range(start, stop):
        before = filled
        for r in range(k):
            j = ranks[i, r]
            for back in range(k):
                if ranks[j, back] == i:
                    columns[filled] = j
                    filled += 1
                    break
        counts[i - start] = filled - before
    return counts, columns[:filled].copy()


@njit(nogil=True, cache=True)
def expanded_of_block(start, stop, indptr, indices, half_indptr, half_indices):
    mark = np.zeros(len(indptr) - 1, np.int32)  # in the current row ``own`` for R(i), own + 1 for the rest of E(i)
    counts = np.empty(stop - start, np.int64)
    columns = np.empty(32 * (stop - start), indices.dtype)
    filled = 0
    for i in range(start, stop):
        before = filled
        own = np.int32(2 * (i - start) + 1)
        columns = _with_room(columns, filled, indptr[i + 1] - indptr[i])
        for p in range(indptr[i], indptr[i + 1]):
            mark[indices[p]] = own
            columns[filled] = indices[p]
            filled += 1
        for p in range(indptr[i], indptr[i + 1]):
            first, last = half_indptr[indices[p]], half_indptr[indices[p] + 1]
            overlap = 0
            for q in range(first, last):
                overlap += mark[half_indices[q]] == own
            if 3 * overlap > 2 * (last - first) and overlap < last - first:
                columns = _with_room(columns, filled, last - first - overlap)
                for q in range(first, last):
                    j = half_indices[q]
                    if mark[j] < own:
                        mark[j] = own + 1
                        columns[filled] = j
                        filled += 1
        counts[i - start] = filled - before
    return counts, columns[:filled].copy()


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def weights_of_rows(own, features, scale, furthest, indptr, columns):
    """Weights of ``columns``, which start with entry ``indptr[0]``. own: for each row its row in ``features``.

    furthest: empty, or for each row the squared distance by which the others are divided before they are squared.
    """
    weights = np.empty(len(columns), np.float32)
    for row in range(len(own)):
        i = own[row]
        total = 0.0
        first, last = indptr[row] - indptr[0], indptr[row + 1] - indptr[0]
        for p in range(first, last):
            j = columns[p]
            dot = np.float32(0)
            for d in range(features.shape[1]):
                dot += features[i, d] * features[j, d]
            distance = 2 - 2 * dot * scale[i] * scale[j]
            if len(furthest):
                distance = (distance / furthest[row]) ** 2
            weights[p] = np.exp(-distance)
            total += weights[p]
        for p in range(first, last):
            weights[p] /= total
    return weights


@njit(nogil=True, cache=True)
def average_of_block(start, stop, ranks, indptr, indices, data):
    sums = np.zeros(len(indptr) - 1, np.float32)  # of the current row
    counts = np.empty(stop - start, np.int64)
    columns = np.empty(64 * (stop - start), indices.dtype)
    values = np.empty(len(columns), np.float32)
    share = np.float32(1 / ranks.shape[1])
    filled = 0
    for i in range(start, stop):
        before = filled
        for r in range(ranks.shape[1]):
            j = ranks[i, r]
            columns = _with_room(columns, filled, indptr[j + 1] - indptr[j])
            for p in range(indptr[j], indptr[j + 1]):
                column = indices[p]
                if sums[column] == 0:
                    columns[filled] = column
                    filled += 1
                sums[column] += data[p]
        values = _with_room(values, before, filled - before)
        for p in range(before, filled):
            values[p] = share * sums[columns[p]]
            sums[columns[p]] = 0
        counts[i - start] = filled - before
    return counts, columns[:filled].copy(), values[:filled].copy()


@njit(nogil=True, cache=True)
def distances_of_block(start, stop, indptr, indices, data, inv_indptr, inv_indices, inv_data, max_distance):
    """Distances on and above the diagonal, unsorted within a row. inv_*: the transposed matrix, with sorted indices."""
    shared = np.zeros(len(indptr) - 1, np.float32)  # t of the current row with every row
    touched = np.empty(len(indptr) - 1, indices.dtype)
    counts = np.empty(stop - start, np.int64)
    columns = np.empty(64 * (stop - start), indices.dtype)
    distances = np.empty(len(columns), np.float32)
    filled = 0
    for i in range(start, stop):
        num_touched = 0
        for p in range(indptr[i], indptr[i + 1]):
            for q in range(inv_indptr[indices[p] + 1] - 1, inv_indptr[indices[p]] - 1, -1):
                j = inv_indices[q]
                if j < i:  # indices are sorted: the rest is below the diagonal
                    break
                if shared[j] == 0:
                    touched[num_touched] = j
                    num_touched += 1
                shared[j] += min(data[p], inv_data[q])

        columns = _with_room(columns, filled, num_touched)
        distances = _with_room(distances, filled, num_touched)
        before = filled
        for t in range(num_touched):
            j = touched[t]
            distance = np.float32(max(0.0, 1 - shared[j] / (2 - shared[j])))
            shared[j] = 0
            if distance < 1 and distance <= max_distance:
                columns[filled] = j
                distances[filled] = distance
                filled += 1
        counts[i - start] = filled - before
    return counts, columns[:filled].copy(), distances[:filled].copy()


@njit(nogil=True, cache=True)
def mirrored(counts, upper_columns, upper_values):
    """The symmetric matrix with these entries on and above its diagonal, in the same form, with sorted columns."""
    num_rows = len(counts)
    degrees = counts.copy()
    p = 0
    for i in range(num_rows):
        for _ in range(counts[i]):
            if upper_columns[p] != i:
                degrees[upper_columns[p]] += 1
            p += 1
    first = degrees.cumsum() - degrees

    columns = np.empty(degrees.sum(), upper_columns.dtype)
    values = np.empty(len(columns), upper_values.dtype)
    # On and below the diagonal: rows come in ascending order, and so do the columns of each mirrored row.
    end = first.copy()
    p = 0
    for i in range(num_rows):
        for _ in range(counts[i]):
            j = upper_columns[p]
            columns[end[j]] = i
            values[end[j]] = upper_values[p]
            end[j] += 1
            p += 1
    # Above the diagonal: mirror again, now from the sorted rows below it.
    lower_end = end.copy()
    for j in range(num_rows):
        for p in range(first[j], lower_end[j]):
            i = columns[p]
            if i != j:
                columns[end[i]] = j
                values[end[i]] = values[p]
                end[i] += 1
    return degrees, columns, values


@njit(nogil=True, cache=True)
def _with_room(array, used, more):
    """``array``, or a longer copy of its first ``used`` entries, with space for ``more`` after them."""
    if used + more <= len(array):
        return array
    longer = np.empty(2 * (used + more), array.dtype)
    longer[:used] = array[:used]
    return longer
