"""The best `k` results so far, as a heap whose root is the worst of them: lowest score, then highest row."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(nogil=True, cache=True, inline="always")
def _is_worse(scores: NDArray[np.float32], rows: NDArray[np.int64], one: int, other: int) -> bool:
    return bool(scores[one] < scores[other] or (scores[one] == scores[other] and rows[one] > rows[other]))


@numba.njit(nogil=True, cache=True, inline="always")
def _swap(scores: NDArray[np.float32], rows: NDArray[np.int64], one: int, other: int) -> None:
    scores[one], scores[other] = scores[other], scores[one]
    rows[one], rows[other] = rows[other], rows[one]


@numba.njit(nogil=True, cache=True)
def _sift_down(scores: NDArray[np.float32], rows: NDArray[np.int64], size: int) -> None:
    parent = 0
    while True:
        worst = parent
        for child in (2 * parent + 1, 2 * parent + 2):
            if child < size and _is_worse(scores, rows, child, worst):
                worst = child
        if worst == parent:
            return
        _swap(scores, rows, parent, worst)
        parent = worst


@numba.njit(nogil=True, cache=True)
def _sift_up(scores: NDArray[np.float32], rows: NDArray[np.int64], child: int) -> None:
    while child > 0:
        parent = (child - 1) // 2
        if not _is_worse(scores, rows, child, parent):
            return
        _swap(scores, rows, parent, child)
        child = parent


@numba.njit(nogil=True, cache=True, inline="always")
def offer(scores: NDArray[np.float32], rows: NDArray[np.int64], size: int, score: float, row: int) -> int:
    """Take a result in if it is among the best; returns the new size of the heap.

    Rows may come in any order; only scores above 0 are results.
    """
    if score <= 0:
        return size
    if size < len(scores):
        scores[size], rows[size] = score, row
        _sift_up(scores, rows, size)
        return size + 1
    if score > scores[0] or (score == scores[0] and row < rows[0]):
        scores[0], rows[0] = score, row
        _sift_down(scores, rows, size)
    return size


@numba.njit(nogil=True, cache=True)
def sort_best_first(scores: NDArray[np.float32], rows: NDArray[np.int64], size: int) -> None:
    """Turn the heap into a list: highest score first, equal scores by lower row."""
    for end in range(size - 1, 0, -1):
        _swap(scores, rows, 0, end)
        _sift_down(scores, rows, end)


@numba.njit(nogil=True, cache=True)
def sort_all(
    scores: NDArray[np.float32],
    rows: NDArray[np.int64],
    sizes: NDArray[np.int64],
    first: int,
    step: int,
) -> None:
    """`sort_best_first` for every so many-th query."""
    for query in range(first, len(sizes), step):
        sort_best_first(scores[query], rows[query], sizes[query])
