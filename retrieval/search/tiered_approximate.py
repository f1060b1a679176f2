"""Approximate search of the tiers layout: the documents that get most from the first tiers are scored, and no others.

Which tiers are added up is chosen by what their postings can add to a score, within a budget that is a share of all
postings of the query's terms.
"""

# mypy: disable-error-code="arg-type,assignment,call-arg,index,return-value"
# Numba's types are not Python's: whole numbers and floats of fixed sizes mix freely inside kernels.

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from retrieval.index.tiered_postings import GROUP_DOCUMENTS
from retrieval.search.tiered_rows import score_rows
from retrieval.search.tiered_scatter import groups_from, nth_largest, scatter_window
from runtime.kernels.prefetch import prefetch

LEVELS = 256
"""Classes that tiers are put into by what they are worth to a query."""


@numba.njit(nogil=True, boundscheck=False)
def search_approximately(
    candidates: int,
    effort: float,
    largest: np.float32,
    chosen: int,
    total_postings: int,
    first_row: int,
    window_documents: NDArray[np.int64],
    window_postings: NDArray[np.int64],
    term_runs: NDArray[np.uint32],
    run_lengths: NDArray[np.uint32],
    run_largest: NDArray[np.float32],
    run_starts: NDArray[np.uint32],
    posting_places: NDArray[np.uint16],
    posting_impacts: NDArray[Any],
    row_starts: NDArray[np.int64],
    row_terms: NDArray[Any],
    row_impacts: NDArray[Any],
    step: np.float32,
    allowed: NDArray[np.bool_],
    allowed_rows: NDArray[np.int64],
    keys: NDArray[np.uint64],
    size: int,
    k: int,
    sums: NDArray[np.uint16],
    group_largest: NDArray[np.uint16],
    found: NDArray[np.int64],
    slots: NDArray[np.uint8],
    terms: NDArray[np.int64],
    weights: NDArray[np.float32],
    fixed: NDArray[np.uint32],
    floats: NDArray[np.float32],
    histogram: NDArray[np.int64],
    hits: NDArray[np.int64],
    buffer: NDArray[np.int64],
    buffer_sums: NDArray[np.uint16],
    counts: NDArray[np.int64],
) -> tuple[bool, int]:
    """Score about as many documents as `candidates` says, those of the largest sums.

    Gives up, with nothing scored, where too few of those that may be found were met.
    """
    budget = max(effort * total_postings, np.float64(4 * candidates))
    _choose_depths(chosen, terms, weights, largest, term_runs, run_lengths, run_largest, budget, histogram)
    threshold, filled = 1, 0
    for window in range(len(window_documents) - 1):
        start, end = window_documents[window], window_documents[window + 1]
        groups = (end - start + GROUP_DOCUMENTS - 1) // GROUP_DOCUMENTS
        scatter_window(
            window, groups, chosen, terms, fixed, floats, term_runs, run_starts, window_postings[window],
            posting_places, posting_impacts, allowed_rows, start, end, sums, group_largest, counts,
        )  # fmt: skip
        if filled < candidates:  # no good threshold yet: the best groups of this window set one
            threshold = max(threshold, nth_largest(group_largest, groups, candidates, histogram))
        for place in range(groups_from(threshold, group_largest, groups, found)):
            group = found[place]
            if filled > len(buffer) - GROUP_DOCUMENTS:
                filled, threshold = _cut_back(buffer, buffer_sums, filled, candidates, histogram)
            for member in range(GROUP_DOCUMENTS):
                reached = sums[member * groups + group]
                row = start + group * GROUP_DOCUMENTS + member
                if reached >= threshold and (len(allowed) == 0 or allowed[row]):
                    buffer[filled] = row
                    buffer_sums[filled] = reached
                    prefetch(row_starts, buffer[filled])
                    filled += 1
        sums[: groups * GROUP_DOCUMENTS] = 0
        if filled > 2 * candidates:
            filled, threshold = _cut_back(buffer, buffer_sums, filled, candidates, histogram)
    if filled > candidates:
        filled, threshold = _cut_back(buffer, buffer_sums, filled, candidates, histogram)
    if len(allowed) and filled < k:
        return False, size
    size = score_rows(
        buffer, filled, first_row, row_starts, row_terms, row_impacts, step, slots, weights, hits, keys, size, k,
        counts,
    )  # fmt: skip
    return True, size


@numba.njit(nogil=True, boundscheck=False)
def _choose_depths(
    chosen: int,
    terms: NDArray[np.int64],
    weights: NDArray[np.float32],
    largest: np.float32,
    term_runs: NDArray[np.uint32],
    run_lengths: NDArray[np.uint32],
    run_largest: NDArray[np.float32],
    budget: float,
    histogram: NDArray[np.int64],
) -> None:
    """Choose how many tiers of each query term to add up: those whose postings add most to a score, within a budget.

    `terms[0]` are the terms, `terms[1]` becomes the number of runs of each. A tier is worth the mean of its
    largest impact and that of the next one.
    """
    histogram[:LEVELS] = 0
    for place in range(chosen):
        term, below = terms[0, place], np.float32(0)
        for run in range(np.int64(term_runs[term + 1]) - 1, np.int64(term_runs[term]) - 1, -1):
            above = max(below, run_largest[run])
            level = _level(weights[place + 1] * (above + below), largest)
            histogram[level] += run_lengths[run]
            below = above
    level, postings = LEVELS, 0
    while level > 0 and (postings < budget or level == LEVELS):
        level -= 1
        postings += histogram[level]
    for place in range(chosen):
        term, below, depth = terms[0, place], np.float32(0), 0
        for run in range(np.int64(term_runs[term + 1]) - 1, np.int64(term_runs[term]) - 1, -1):
            above = max(below, run_largest[run])
            if depth == 0 and _level(weights[place + 1] * (above + below), largest) >= level:
                depth = run + 1 - np.int64(term_runs[term])
            below = above
        terms[1, place] = depth


@numba.njit(nogil=True, boundscheck=False)
def _level(worth: np.float32, largest: np.float32) -> int:
    return min(max(np.int64((LEVELS - 1) * (worth / (2 * largest))), 0), LEVELS - 1)


@numba.njit(nogil=True, boundscheck=False)
def _cut_back(
    buffer: NDArray[np.int64],
    buffer_sums: NDArray[np.uint16],
    filled: int,
    wanted: int,
    histogram: NDArray[np.int64],
) -> tuple[int, int]:
    """Keep about the `wanted` candidates of the largest sums; returns how many, and the sum that they reach."""
    threshold = nth_largest(buffer_sums, filled, wanted, histogram)
    kept = 0
    room = len(buffer) // 2
    for place in range(filled):
        if buffer_sums[place] >= threshold and kept < room:
            buffer[kept] = buffer[place]
            buffer_sums[kept] = buffer_sums[place]
            kept += 1
    return kept, threshold
