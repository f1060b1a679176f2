"""Exact search of the tiers layout: the best documents, and the proof that no other is among them.

The last tiers of a query's terms are not added up. What they can add to any of 32 documents has a bound in the
index, an 8-bit code of each of these *residuals*; a document is ruled out where its sum and its group's bounds
together do not reach the k-th best score so far.
"""

# mypy: disable-error-code="arg-type,assignment,call-arg,index,return-value"
# Numba's types are not Python's: whole numbers and floats of fixed sizes mix freely inside kernels.

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from retrieval.index.tiered_postings import GROUP_DOCUMENTS
from retrieval.search.counters import GROUPS, SKIPPED
from retrieval.search.tiered_rows import score_rows
from retrieval.search.tiered_scatter import FULL, groups_from, nth_largest, scatter_window
from retrieval.search.top_k import keep_best, needed_score
from runtime.kernels.prefetch import prefetch

BOUND_COST = 1 / 256
"""Adding a term's bounds takes about as long as adding up one posting for so many documents."""
IGNORED_COST = 0.5
"""How much ignoring as much as a result needs would cost, as a share of the query's postings: a proof that leaves
out tiers has more documents to score. Found by trying."""
ROUNDING = np.float32(1 - 1e-5)
"""Float32 sums and the scales above are off by less than this."""


@numba.njit(nogil=True, boundscheck=False)
def prove(
    candidates: int,
    limit: int,
    scale: np.float32,
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
    residual_slots: NDArray[np.int32],
    residual_starts: NDArray[np.int64],
    residuals: NDArray[np.uint8],
    residual_step: np.float32,
    step: np.float32,
    allowed: NDArray[np.bool_],
    allowed_rows: NDArray[np.int64],
    keys: NDArray[np.uint64],
    size: int,
    k: int,
    sums: NDArray[np.uint16],
    group_largest: NDArray[np.uint16],
    bounds: NDArray[np.uint16],
    found: NDArray[np.int64],
    slots: NDArray[np.uint8],
    terms: NDArray[np.int64],
    weights: NDArray[np.float32],
    fixed: NDArray[np.uint32],
    floats: NDArray[np.float32],
    histogram: NDArray[np.int64],
    hits: NDArray[np.int64],
    buffer: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> tuple[bool, int]:
    """Score every document that could be a result; gives up where that is more than `limit` of them.

    Window by window: first the documents whose sums are largest, so that what a result needs is known early; then
    all others that their sum, their group's bound and what is ignored do not exclude.
    """
    num_windows = len(window_documents) - 1
    needed = needed_score(keys, size, k)
    chosen_for = np.float32(-1)
    ignored, bound_scale = np.float32(0), np.float32(0)
    slack = np.float32(2 * chosen + 2)
    scored = filled = 0
    for window in range(num_windows):
        start, end = window_documents[window], window_documents[window + 1]
        groups = (end - start + GROUP_DOCUMENTS - 1) // GROUP_DOCUMENTS
        if chosen_for <= 0:
            ignored, bound_scale = _choose_proof_depths(
                needed, chosen, total_postings, window_documents[num_windows], term_runs, run_lengths,
                run_largest, residual_slots, residual_step, terms, weights,
            )  # fmt: skip
            chosen_for = needed
            if bound_scale == 0:
                return False, size
        scatter_window(
            window, groups, chosen, terms, fixed, floats, term_runs, run_starts, window_postings[window],
            posting_places, posting_impacts, allowed_rows, start, end, sums, group_largest, counts,
        )  # fmt: skip
        if needed > 0:
            surely = np.int64(min(needed * scale, FULL)) + 1
        else:
            surely = nth_largest(group_largest, groups, candidates, histogram)
        for place in range(groups_from(surely, group_largest, groups, found)):
            group = found[place]
            for member in range(GROUP_DOCUMENTS):
                row = start + group * GROUP_DOCUMENTS + member
                if sums[member * groups + group] >= surely and (len(allowed) == 0 or allowed[row]):
                    buffer[filled] = row
                    prefetch(row_starts, row)
                    filled += 1
            if filled > len(buffer) - GROUP_DOCUMENTS:
                scored += filled
                size = score_rows(
                    buffer, filled, first_row, row_starts, row_terms, row_impacts, step, slots, weights, hits,
                    keys, size, k, counts,
                )  # fmt: skip
                filled = 0
        scored += filled
        size = score_rows(
            buffer, filled, first_row, row_starts, row_terms, row_impacts, step, slots, weights, hits, keys, size, k,
            counts,
        )  # fmt: skip
        filled = 0
        size = keep_best(keys, size, k)
        needed = needed_score(keys, size, k)
        if needed == 0 or scored > limit:
            sums[: groups * GROUP_DOCUMENTS] = 0
            return False, size
        bounds[:groups] = 0
        for place in range(chosen):
            if terms[2, place]:
                of_term = residual_starts[window] + np.int64(residual_slots[terms[0, place]]) * groups
                _add_bounds(bounds, residuals, of_term, groups, terms[2, place])
        counts[GROUPS] += groups
        ratio = scale / bound_scale
        enough_alone = (needed * ROUNDING - ignored) * scale - slack
        reaching = _groups_in_reach(enough_alone, ratio, group_largest, bounds, groups, found)
        counts[SKIPPED] += groups - reaching
        for place in range(reaching):
            group = found[place]
            enough = (needed * ROUNDING - ignored) * scale - slack - np.float32(bounds[group]) * ratio
            for member in range(min(GROUP_DOCUMENTS, end - start - group * GROUP_DOCUMENTS)):
                reached = sums[member * groups + group]
                row = start + group * GROUP_DOCUMENTS + member
                if reached >= enough and reached < surely and (len(allowed) == 0 or allowed[row]):
                    buffer[filled] = row
                    prefetch(row_starts, row)
                    filled += 1
            if filled > len(buffer) - GROUP_DOCUMENTS or scored + filled > limit:
                scored += filled
                if scored > limit:
                    sums[: groups * GROUP_DOCUMENTS] = 0
                    return False, size
                size = score_rows(
                    buffer, filled, first_row, row_starts, row_terms, row_impacts, step, slots, weights, hits,
                    keys, size, k, counts,
                )  # fmt: skip
                filled = 0
                size = keep_best(keys, size, k)
                needed = needed_score(keys, size, k)
        sums[: groups * GROUP_DOCUMENTS] = 0
        scored += filled
        size = score_rows(
            buffer, filled, first_row, row_starts, row_terms, row_impacts, step, slots, weights, hits, keys, size, k,
            counts,
        )  # fmt: skip
        filled = 0
        size = keep_best(keys, size, k)
        needed = needed_score(keys, size, k)
    return True, size


@numba.njit(nogil=True, boundscheck=False)
def _choose_proof_depths(
    needed: np.float32,
    chosen: int,
    total_postings: int,
    documents: int,
    term_runs: NDArray[np.uint32],
    run_lengths: NDArray[np.uint32],
    run_largest: NDArray[np.float32],
    residual_slots: NDArray[np.int32],
    residual_step: np.float32,
    terms: NDArray[np.int64],
    weights: NDArray[np.float32],
) -> tuple[np.float32, np.float32]:
    """Choose how a proof treats each query term: which tiers it adds up, and whether it uses the term's bounds.

    What a term's tiers can add at most, if the proof leaves them out, is *ignored*: the same for all documents. That
    is chosen where it is little for what it saves. Sets `terms[1]` (tiers) and `terms[2]` (weights of bounds, as
    whole numbers; 0 for none).

    Returns:
        What is ignored in all, in scores; and the scale of the bounds, 0 where they do not fit 16 bits.
    """
    bounds_total, largest_codes, ignored = np.float32(0), np.float32(0), np.float32(0)
    for place in range(chosen):
        term = terms[0, place]
        weight = weights[place + 1]
        first, last = np.int64(term_runs[term]), np.int64(term_runs[term + 1])
        has_residual = residual_slots[term] >= 0
        depth = last - first - np.int64(has_residual)
        postings = np.int64(0)
        for run in range(first, first + depth):
            postings += run_lengths[run]
        reachable = run_largest[last - 1] if has_residual else np.float32(0)
        terms[1, place], uses_bounds, ignored_here = depth, has_residual, np.float32(0)
        best_cost = postings + (documents * BOUND_COST if has_residual else 0.0)
        if needed > 0:
            for cut in range(depth, -1, -1):
                if cut < depth:
                    postings -= run_lengths[first + cut]
                    reachable = max(reachable, run_largest[first + cut])
                cost = postings + IGNORED_COST * total_postings * (weight * reachable / needed)
                if cost < best_cost:
                    best_cost, terms[1, place], uses_bounds = cost, cut, False
                    ignored_here = weight * reachable
        terms[2, place] = uses_bounds
        ignored += ignored_here
        if uses_bounds:
            code = np.ceil(run_largest[last - 1] / residual_step)
            bounds_total += weight * residual_step * code
            largest_codes += code
    room = np.float32(65535) - largest_codes  # the whole-number weights below are rounded up
    if room < FULL / 4:
        return ignored, np.float32(0)
    bound_scale = room / bounds_total if bounds_total > 0 else np.float32(1)
    if not np.isfinite(bound_scale):
        return ignored, np.float32(0)
    for place in range(chosen):
        if terms[2, place]:
            terms[2, place] = np.int64(np.ceil(weights[place + 1] * residual_step * bound_scale))
    return ignored, bound_scale


@numba.njit(nogil=True, boundscheck=False)
def _groups_in_reach(
    enough: np.float32,
    ratio: np.float32,
    group_largest: NDArray[np.uint16],
    bounds: NDArray[np.uint16],
    groups: int,
    found: NDArray[np.int64],
) -> int:
    """List the groups whose largest sum is `enough` together with their bound; returns how many."""
    count = 0
    for group in range(groups):
        found[count] = group
        count += np.intp(np.float32(group_largest[group]) + np.float32(bounds[group]) * ratio >= enough)
    return count


@numba.njit(nogil=True, boundscheck=False)
def _add_bounds(
    bounds: NDArray[np.uint16], residuals: NDArray[np.uint8], start: int, groups: int, weight: int
) -> None:
    of_term = residuals[start : start + groups]
    for group in range(groups):
        bounds[group] += np.uint16(weight) * np.uint16(of_term[group])
