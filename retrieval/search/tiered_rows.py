"""Scoring documents of the tiers layout from their rows, exactly.

What limits it are the cache misses of the rows, so those of the next few are asked for while one is scored.
"""

# mypy: disable-error-code="arg-type,assignment,call-arg,index,return-value"
# Numba's types are not Python's: whole numbers and floats of fixed sizes mix freely inside kernels.

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from retrieval.search.counters import ROW_ENTRIES, SCORED
from retrieval.search.top_k import offer
from runtime.kernels.prefetch import LINE_BYTES, prefetch

AHEAD = 6
"""Rows whose memory is asked for while one is scored."""


@numba.njit(nogil=True, boundscheck=False)
def _score_row(
    row: int,
    row_starts: NDArray[np.int64],
    row_terms: NDArray[Any],
    row_impacts: NDArray[Any],
    step: np.float32,
    slots: NDArray[np.uint8],
    weights: NDArray[np.float32],
    hits: NDArray[np.int64],
) -> np.float32:
    """The score of a document: first its terms that the query has, then their products in order."""
    found = 0
    for entry in range(row_starts[row], row_starts[row + 1]):
        hits[found] = entry
        found += np.intp(slots[row_terms[entry]] != 0)
    score = np.float32(0)
    for hit in range(found):
        entry = hits[hit]
        score += weights[slots[row_terms[entry]]] * (step * np.float32(row_impacts[entry]))
    return score


@numba.njit(nogil=True, boundscheck=False)
def _prefetch_row(
    row: int, row_starts: NDArray[np.int64], row_terms: NDArray[Any], row_impacts: NDArray[Any]
) -> None:
    first, last = row_starts[row], row_starts[row + 1]
    for entry in range(first, last, LINE_BYTES // row_terms.itemsize):
        prefetch(row_terms, entry)
    for entry in range(first, last, LINE_BYTES // row_impacts.itemsize):
        prefetch(row_impacts, entry)


@numba.njit(nogil=True, boundscheck=False)
def score_rows(
    buffer: NDArray[np.int64],
    count: int,
    first_row: int,
    row_starts: NDArray[np.int64],
    row_terms: NDArray[Any],
    row_impacts: NDArray[Any],
    step: np.float32,
    slots: NDArray[np.uint8],
    weights: NDArray[np.float32],
    hits: NDArray[np.int64],
    keys: NDArray[np.uint64],
    size: int,
    k: int,
    counts: NDArray[np.int64],
) -> int:
    for place in range(min(AHEAD, count)):
        _prefetch_row(buffer[place], row_starts, row_terms, row_impacts)
    for place in range(count):
        if place + AHEAD < count:
            _prefetch_row(buffer[place + AHEAD], row_starts, row_terms, row_impacts)
        row = buffer[place]
        score = _score_row(row, row_starts, row_terms, row_impacts, step, slots, weights, hits)
        size = offer(keys, size, k, score, first_row + row)
        counts[ROW_ENTRIES] += row_starts[row + 1] - row_starts[row]
    counts[SCORED] += count
    return size
