"""Search of the tiers layout, exact and approximate.

1. **Scatter** (`tiered_scatter`): the first tiers of the query's terms are added up in 16-bit whole numbers, window
   by window. What a document has got then is never more than its score, and short of it by no more than rounding and
   what the tiers left out can add.
2. **Candidates** (`tiered_rows`): the documents that got most are scored from their rows, exactly. An approximate
   search (`tiered_approximate`) chooses them after the last window, and ends there; an exact one takes those of each
   window, so that it knows early what a result needs.
3. **Proof** (`tiered_proof`, exact search), in each window: every 32 documents share a bound on what the last tiers
   can add to any of them. Documents whose sum and bound together reach the k-th best score so far are scored too; for
   all others it is proved that they are no result. Where too many would have to be scored (a large k, a flat query),
   everything is added up instead (`tiered_exhaustive`); where few documents may be found, all of those are scored.

What limits it: 3 bytes for every posting scattered, two sweeps over 2 bytes a document, and the cache misses of the
rows scored and of the first postings of every run. Scores are the float32 sums, in ascending order of units, that the
index defines.
"""

# mypy: disable-error-code="arg-type,assignment,call-arg,index,return-value"
# Numba's types are not Python's: whole numbers and floats of fixed sizes mix freely inside kernels.

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from retrieval.index import tiered_postings
from retrieval.index.tiered_postings import TieredPostings
from retrieval.search import (
    counters,
    tiered_approximate,
    tiered_exhaustive,
    tiered_proof,
    tiered_rows,
    tiered_scatter,
    tiered_scratch,
    top_k,
)
from retrieval.search.counters import BYTES, NUM_COUNTERS, POSTINGS, QUERIES, ROW_ENTRIES, SearchCounters
from retrieval.search.tiered_approximate import search_approximately
from retrieval.search.tiered_exhaustive import add_up_all, lower_bound
from retrieval.search.tiered_proof import prove
from retrieval.search.tiered_rows import score_rows
from retrieval.search.tiered_scatter import FRACTION_BITS, FULL
from retrieval.search.tiered_scratch import MOST_TERMS, TieredScratch
from retrieval.search.top_k import keep_best
from runtime.kernels import prefetch as prefetch_module
from runtime.kernels.kernel_sources import digest_of_sources
from runtime.kernels.prefetch import prefetch

EXHAUSTIVE_MODE, EXACT_MODE, APPROXIMATE_MODE = 0, 1, 2
POSTINGS_PER_SCORED, DOCUMENTS_PER_SCORED = 144, 288
"""Scoring a document from its row takes about as long as adding up so many postings and looking at the scores of so
many documents, in an exhaustive search."""
DOCUMENTS_PER_FEW = 64
"""Where only one in so many documents may be found, all of them are scored."""
SOURCES = digest_of_sources(
    counters,
    prefetch_module,
    tiered_approximate,
    tiered_exhaustive,
    tiered_postings,
    tiered_proof,
    tiered_rows,
    tiered_scatter,
    tiered_scratch,
    top_k,
)


def search_tiers(
    postings: TieredPostings,
    first_row: int,
    allowed: NDArray[np.bool_],
    allowed_rows: NDArray[np.int64],
    queries: tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]],
    share: tuple[int, int],
    top: tuple[NDArray[np.uint64], NDArray[np.int64], int],
    scratch: TieredScratch,
    *,
    mode: int,
    effort: float,
    candidates: int,
    documents_per_result: int,
    counters: SearchCounters | None = None,
) -> None:
    """Search one segment for a share of some queries, carrying the best so far.

    Args:
        first_row: number of the segment's first row in the index.
        allowed: bool ``[documents]``, which may be results; empty means all.
        allowed_rows: the same as numbers, ascending, where they are few; else empty.
        queries: ``indptr``, ``units`` (ascending in a row) and ``weights`` (> 0).
        share: the queries from the first of these two on, each so many-th as the second.
        top: keys ``[queries, room]`` (see `top_k`), int64 ``[queries]`` how many there are, and `k`.
        mode: `EXHAUSTIVE_MODE`, `EXACT_MODE` or `APPROXIMATE_MODE`.
        effort: share of the postings of a query's terms that an approximate search adds up, at least.
        candidates: about how many documents of the largest sums are scored; ≥ k.
        documents_per_result: an exact search adds up everything in a segment with fewer documents for every
            result wanted: too many would have to be scored for a proof.
    """
    scratch.fit(postings, top[0].shape[1], candidates)
    counts = np.zeros(NUM_COUNTERS, np.int64)
    _search_queries(
        *queries,
        share[0],
        share[1],
        first_row,
        postings.window_documents,
        postings.window_postings,
        postings.units,
        postings.term_runs,
        postings.run_lengths,
        postings.run_largest,
        postings.run_starts,
        postings.posting_places,
        postings.posting_impacts,
        postings.row_starts,
        postings.row_terms,
        postings.row_impacts,
        postings.residual_slots,
        postings.residual_starts,
        postings.residuals,
        postings.steps,
        allowed,
        allowed_rows,
        mode,
        effort,
        candidates,
        documents_per_result,
        *top,
        scratch.sums,
        scratch.group_largest,
        scratch.bounds,
        scratch.found,
        scratch.slots,
        scratch.scores,
        scratch.terms,
        scratch.weights,
        scratch.fixed,
        scratch.floats,
        scratch.histogram,
        scratch.hits,
        scratch.buffer,
        scratch.buffer_sums,
        scratch.other_keys,
        counts,
    )
    if counters is not None:
        entry_bytes = postings.row_terms.itemsize + postings.row_impacts.itemsize
        counts[BYTES] = counts[ROW_ENTRIES] * entry_bytes
        counts[BYTES] += counts[POSTINGS] * (2 + postings.posting_impacts.itemsize)
        counters.add(counts)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def _search_queries(
    indptr: NDArray[np.int64],
    query_units: NDArray[np.int32],
    query_weights: NDArray[np.float32],
    first_query: int,
    query_step: int,
    first_row: int,
    window_documents: NDArray[np.int64],
    window_postings: NDArray[np.int64],
    units: NDArray[np.uint32],
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
    steps: NDArray[np.float32],
    allowed: NDArray[np.bool_],
    allowed_rows: NDArray[np.int64],
    mode: int,
    effort: float,
    candidates: int,
    documents_per_result: int,
    top_keys: NDArray[np.uint64],
    sizes: NDArray[np.int64],
    k: int,
    sums: NDArray[np.uint16],
    group_largest: NDArray[np.uint16],
    bounds: NDArray[np.uint16],
    found: NDArray[np.int64],
    slots: NDArray[np.uint8],
    scores: NDArray[np.float32],
    terms: NDArray[np.int64],
    weights: NDArray[np.float32],
    fixed: NDArray[np.uint32],
    floats: NDArray[np.float32],
    histogram: NDArray[np.int64],
    hits: NDArray[np.int64],
    buffer: NDArray[np.int64],
    buffer_sums: NDArray[np.uint16],
    other_keys: NDArray[np.uint64],
    counts: NDArray[np.int64],
    sources: int = SOURCES,  # noqa: ARG001 (see `runtime.kernels.kernel_sources`)
) -> None:
    step, residual_step = steps[0], steps[1]
    documents = window_documents[len(window_documents) - 1]
    for query in range(first_query, len(indptr) - 1, query_step):
        counts[QUERIES] += 1
        of_query = query_units[indptr[query] : indptr[query + 1]]
        weights_of_query = query_weights[indptr[query] : indptr[query + 1]]
        keys, size = top_keys[query], sizes[query]

        # The query's terms in this segment, and what they can add up to at most.
        chosen, total_postings, place = 0, 0, 0
        total, largest = np.float32(0), np.float32(0)
        is_scalable = mode != EXHAUSTIVE_MODE and len(of_query) <= MOST_TERMS
        are_few = mode != EXHAUSTIVE_MODE and 0 < len(allowed_rows) * DOCUMENTS_PER_FEW <= documents
        if mode == EXACT_MODE and not are_few:
            is_scalable &= documents_per_result * k <= documents
        if is_scalable:
            for entry in range(len(of_query)):
                place = lower_bound(units, of_query[entry], place)
                if place == len(units):
                    break
                if units[place] != of_query[entry]:
                    continue
                highest = np.float32(0)
                for run in range(term_runs[place], term_runs[place + 1]):
                    highest = max(highest, run_largest[run])
                    total_postings += run_lengths[run]
                terms[0, chosen] = place
                weights[chosen + 1] = weights_of_query[entry]
                total += weights_of_query[entry] * highest
                largest = max(largest, weights_of_query[entry] * highest)
                chosen += 1
            if chosen == 0:
                continue
        scale = FULL / total if total > 0 else np.float32(0)
        heaviest = np.float32(0)
        for entry in range(len(of_query)):
            heaviest = max(heaviest, weights_of_query[entry])
        is_scalable &= np.isfinite(scale) and scale > 0 and np.isfinite(heaviest * scale)
        if mode == APPROXIMATE_MODE and not are_few:  # many results of few documents: exact, and sooner
            scored = candidates * POSTINGS_PER_SCORED
            is_scalable &= effort * total_postings / 2 + scored < total_postings + documents / 2
        if not is_scalable:
            sizes[query] = add_up_all(
                units, of_query, weights_of_query, first_row, window_documents, window_postings, term_runs,
                run_starts, posting_places, posting_impacts, step, allowed, keys, size, k, scores, counts,
            )  # fmt: skip
            continue

        for place in range(chosen):
            floats[place] = weights[place + 1] * scale
            fixed[place] = np.uint32(floats[place] * step * np.float32(1 << FRACTION_BITS))
            slots[terms[0, place]] = place + 1

        is_done = True
        if are_few:
            for first in range(0, len(allowed_rows), len(buffer)):
                filled = min(len(buffer), len(allowed_rows) - first)
                for place in range(filled):
                    buffer[place] = allowed_rows[first + place]
                    prefetch(row_starts, buffer[place])
                size = score_rows(
                    buffer, filled, first_row, row_starts, row_terms, row_impacts, step, slots, weights, hits,
                    keys, size, k, counts,
                )  # fmt: skip
        elif mode == APPROXIMATE_MODE:
            is_done, size = search_approximately(
                candidates, effort, largest, chosen, total_postings,
                first_row, window_documents, window_postings, term_runs, run_lengths, run_largest, run_starts,
                posting_places, posting_impacts, row_starts, row_terms, row_impacts, step, allowed, allowed_rows,
                keys, size, k, sums, group_largest, found, slots, terms, weights, fixed, floats, histogram, hits,
                buffer, buffer_sums, counts,
            )  # fmt: skip
        else:
            size_before = keep_best(keys, size, k)
            other_keys[:size_before] = keys[:size_before]
            limit = total_postings // POSTINGS_PER_SCORED + documents // DOCUMENTS_PER_SCORED + 2 * candidates
            is_done, size = prove(
                candidates, limit, scale, chosen, total_postings,
                first_row, window_documents, window_postings, term_runs, run_lengths, run_largest, run_starts,
                posting_places, posting_impacts, row_starts, row_terms, row_impacts, residual_slots,
                residual_starts, residuals, residual_step, step, allowed, allowed_rows, keys, size_before, k, sums,
                group_largest, bounds, found, slots, terms, weights, fixed, floats, histogram, hits, buffer, counts,
            )  # fmt: skip
            if not is_done:
                size = size_before
                keys[:size] = other_keys[:size]
        if not is_done:
            size = add_up_all(
                units, of_query, weights_of_query, first_row, window_documents, window_postings, term_runs,
                run_starts, posting_places, posting_impacts, step, allowed, keys, size, k, scores, counts,
            )  # fmt: skip
        for place in range(chosen):
            slots[terms[0, place]] = 0
        sizes[query] = size
