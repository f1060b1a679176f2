"""Exhaustive search of the tiers layout: every posting of every query term is added up, in float32."""

# mypy: disable-error-code="arg-type,assignment,call-arg,index,return-value"
# Numba's types are not Python's: whole numbers and floats of fixed sizes mix freely inside kernels.

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from retrieval.index.tiered_postings import GROUP_DOCUMENTS
from retrieval.search.counters import EXHAUSTIVE, POSTINGS
from retrieval.search.top_k import needed_score, offer


@numba.njit(nogil=True, boundscheck=False)
def add_up_all(
    units: NDArray[np.uint32],
    query_units: NDArray[np.int32],
    query_weights: NDArray[np.float32],
    first_row: int,
    window_documents: NDArray[np.int64],
    window_postings: NDArray[np.int64],
    term_runs: NDArray[np.uint32],
    run_starts: NDArray[np.uint32],
    posting_places: NDArray[np.uint16],
    posting_impacts: NDArray[Any],
    step: np.float32,
    allowed: NDArray[np.bool_],
    keys: NDArray[np.uint64],
    size: int,
    k: int,
    scores: NDArray[np.float32],
    counts: NDArray[np.int64],
) -> int:
    """Add up every posting, window by window, term by term."""
    for window in range(len(window_documents) - 1):
        base = window_postings[window]
        term = 0
        for place in range(len(query_units)):
            term = lower_bound(units, query_units[place], term)
            if term == len(units):
                break
            if units[term] != query_units[place]:
                continue
            weight = query_weights[place]
            first = base + run_starts[term_runs[term], window]
            last = base + run_starts[term_runs[term + 1], window]
            counts[POSTINGS] += last - first
            for posting in range(first, last):
                scores[posting_places[posting]] += weight * (step * np.float32(posting_impacts[posting]))
        start = window_documents[window]
        groups = (window_documents[window + 1] - start + GROUP_DOCUMENTS - 1) // GROUP_DOCUMENTS
        threshold = needed_score(keys, size, k)
        for place in range(groups * GROUP_DOCUMENTS):
            score = scores[place]
            scores[place] = 0
            if score > 0 and score >= threshold:
                row = start + place % groups * GROUP_DOCUMENTS + place // groups
                if len(allowed) == 0 or allowed[row]:
                    size = offer(keys, size, k, score, first_row + row)
                    threshold = needed_score(keys, size, k)
    counts[EXHAUSTIVE] += 1
    return size


@numba.njit(nogil=True, boundscheck=False)
def lower_bound(units: NDArray[np.uint32], wanted: int, low: int) -> int:
    high = len(units)
    while low < high:
        middle = (low + high) // 2
        if units[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low
