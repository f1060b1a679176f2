"""The best `k` results so far: a few more than that in no order, cut back to `k` when the room for them is full.

A result is one key of 64 bits, its score above and its row below, made so that the better of two results (higher
score, then lower row) has the higher key. From `k` results on, the first key is one that at least `k - 1` others
beat, so what it beats cannot be a result. A heap would know the k-th best at every moment, but takes log k steps
that no processor foresees for every result; cutting back takes a few foreseeable ones.
"""

# mypy: disable-error-code="assignment,return-value"
# Numba's types are not Python's: whole numbers of fixed sizes mix freely inside kernels.

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

MOST_ROWS = 1 << 32
"""Rows that keys can tell apart."""
LAST_ROW = np.uint64(MOST_ROWS - 1)
ROW_BITS = np.uint64(32)
SPARE = 54
"""Room beyond the best, at least: cutting back is rare then even for a small `k`."""


def room_for(k: int) -> int:
    """How many keys `k` results need room for."""
    return max(2 * k, k + SPARE)


@numba.njit(nogil=True, cache=True, inline="always")
def _key(score: np.float32, row: int) -> int:
    return np.uint64(np.float32(score).view(np.uint32)) << ROW_BITS | (LAST_ROW - np.uint64(row))


@numba.njit(nogil=True, cache=True, inline="always")
def needed_score(keys: NDArray[np.uint64], size: int, k: int) -> np.float32:
    """A score that `k` results reach already; 0 before there are so many."""
    return np.uint32(keys[0] >> ROW_BITS).view(np.float32) if size >= k else np.float32(0)


@numba.njit(nogil=True, cache=True, inline="always")
def offer(keys: NDArray[np.uint64], size: int, k: int, score: np.float32, row: int) -> int:
    """Take a result in if it may be among the best `k`; returns how many there are now.

    Rows may come in any order, each once; only scores above 0 are results.
    """
    if score <= 0:
        return size
    key = _key(score, row)
    if size >= k and key < keys[0]:
        return size
    keys[size] = key
    size += 1
    return keep_best(keys, size, k) if size == k or size == len(keys) else size


@numba.njit(nogil=True, cache=True)
def keep_best(keys: NDArray[np.uint64], size: int, k: int) -> int:
    """Drop all but the best `k` and put the worst of them first; returns how many there are now.

    Quickselect (Hoare 1961), partitioning without a branch (Lomuto's scheme).
    """
    low, high = 0, size
    while high > k > low:
        pivot = _median(keys[low], keys[(low + high) // 2], keys[high - 1])
        middle = low
        for place in range(low, high):
            key = keys[place]
            keys[place] = keys[middle]
            keys[middle] = key
            middle += np.intp(key > pivot)
        # keys[low:middle] beat the pivot; the rest, and the pivot in it, do not.
        if middle >= k:
            high = middle
        elif middle > low:
            low = middle
        else:  # the pivot is the best of them
            for place in range(low, high):
                if keys[place] == pivot:
                    keys[low], keys[place] = keys[place], keys[low]
            low += 1
    size = min(size, k)
    worst = 0
    for place in range(1, size):
        if keys[place] < keys[worst]:
            worst = place
    if size:
        keys[0], keys[worst] = keys[worst], keys[0]
    return size


@numba.njit(nogil=True, cache=True, inline="always")
def _median(one: int, two: int, three: int) -> int:
    return max(min(one, two), min(max(one, two), three))


def sort_best_first(
    keys: NDArray[np.uint64],
    sizes: NDArray[np.int64],
    k: int,
    share: tuple[int, int],
    scores: NDArray[np.float32],
    rows: NDArray[np.int64],
) -> None:
    """Write the best `k` of each query: highest score first, equal scores by lower row.

    Args:
        keys: ``[queries, room]``; sorted in place.
        sizes: ``[queries]``, how many there are; becomes at most `k`.
        share: the queries from the first of these two on, each so many-th as the second.
        scores, rows: ``[queries, k]``.
    """
    for query in range(share[0], len(sizes), share[1]):
        keys[query, : sizes[query]].sort()  # by NumPy, whose sorting is vectorised
    _unpack(keys, sizes, k, *share, scores, rows)


@numba.njit(nogil=True, cache=True)
def _unpack(
    keys: NDArray[np.uint64],
    sizes: NDArray[np.int64],
    k: int,
    first: int,
    step: int,
    scores: NDArray[np.float32],
    rows: NDArray[np.int64],
) -> None:
    for query in range(first, len(sizes), step):
        best = sizes[query] - 1
        sizes[query] = min(k, sizes[query])
        for place in range(sizes[query]):
            key = keys[query, best - place]
            scores[query, place] = np.uint32(key >> ROW_BITS).view(np.float32)
            rows[query, place] = np.int64(LAST_ROW - (key & LAST_ROW))
