"""Search of the tiers layout, exact and approximate.

1. **Scatter**: the first tiers of the query's terms are added up in 16-bit whole numbers, window by window. What a
   document has got then is never more than its score, and short of it by no more than rounding and what the tiers
   left out can add.
2. **Candidates**: the documents that got most are scored from their rows, exactly. An approximate search chooses them
   after the last window, and ends there; an exact one takes those of each window, so that it knows early what a
   result needs.
3. **Proof** (exact search), in each window: every 32 documents share a bound on what the last tiers can add to any of
   them. Documents whose sum and bound together reach the k-th best score so far are scored too; for all others it is
   proved that they are no result. Where too many would have to be scored (a large k, a flat query), everything is
   added up instead; where few documents may be found, all of those are scored.

What limits it: 3 bytes for every posting scattered, two sweeps over 2 bytes a document, and the cache misses of the
rows scored and of the first postings of every run. Scores are the float32 sums, in ascending order of units, that the
index defines.
"""

# mypy: disable-error-code="arg-type,assignment,call-arg,index,return-value"
# Numba's types are not Python's: whole numbers and floats of fixed sizes mix freely inside kernels.

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numba
import numpy as np
from numba.extending import overload
from numpy.typing import NDArray

from retrieval.index.tiered_postings import GROUP_DOCUMENTS, TieredPostings
from retrieval.index.window_postings import WINDOW_DOCUMENTS
from retrieval.search.top_k import keep_best, needed_score, offer
from runtime.kernels.prefetch import prefetch

FULL = np.float32(64000)
"""What the largest score that a query's weights allow is in whole numbers; the rest of 16 bits is for rounding."""
FRACTION_BITS = 8
MOST_TERMS = 255
"""Query terms that 8-bit slots can tell apart; longer queries are searched exhaustively."""
LEVELS = 256
"""Classes that tiers are put into by what they are worth to a query."""
BIN_BITS = 6
BINS = 1 << (16 - BIN_BITS)
"""Classes that sums are counted in, to find about the n-th largest."""
BUFFER = 4096
"""Candidates gathered before they are scored, at least."""
EXHAUSTIVE_MODE, EXACT_MODE, APPROXIMATE_MODE = 0, 1, 2
BOUND_COST = 1 / 256
"""Adding a term's bounds takes about as long as adding up one posting for so many documents."""
IGNORED_COST = 0.5
"""How much ignoring as much as a result needs would cost, as a share of the query's postings: a proof that leaves
out tiers has more documents to score. Found by trying."""
POSTINGS_PER_SCORED, DOCUMENTS_PER_SCORED = 144, 288
"""Scoring a document from its row takes about as long as adding up so many postings and looking at the scores of so
many documents, in an exhaustive search."""
DOCUMENTS_PER_FEW = 64
"""Where only one in so many documents may be found, all of them are scored."""
ROUNDING = np.float32(1 - 1e-5)
"""Float32 sums and the scales above are off by less than this."""
AHEAD = 6
"""Rows whose memory is asked for while one is scored."""
RUNS_AHEAD, MOST_AHEAD = 2, 512
"""The same for postings: so many runs ahead, and so many postings of each; the processor follows longer ones."""
LINE_BYTES = 64


@dataclass(slots=True)
class SearchCounters:
    """What a search did, summed over its queries.

    Attributes:
        queries: how many.
        postings: postings added up.
        scored: documents scored from their rows.
        row_entries: entries of those rows.
        groups: groups of 32 documents that were looked at.
        groups_skipped: those of which no document had to be scored.
        exhaustive: queries (times segments) that were added up completely.
        bytes: bytes of the index that were read, about.
    """

    queries: int = 0
    postings: int = 0
    scored: int = 0
    row_entries: int = 0
    groups: int = 0
    groups_skipped: int = 0
    exhaustive: int = 0
    bytes: int = 0

    def add(self, counts: NDArray[np.int64]) -> None:
        for field, count in zip(fields(self), counts.tolist(), strict=True):
            setattr(self, field.name, getattr(self, field.name) + count)


NUM_COUNTERS = len(fields(SearchCounters))
QUERIES, POSTINGS, SCORED, ROW_ENTRIES, GROUPS, SKIPPED, EXHAUSTIVE, BYTES = range(NUM_COUNTERS)


class TieredScratch:
    """Memory that one thread needs for searching; no search allocates any.

    `sums`, `scores` and `slots` have to be all zeros, and are again after every search.
    """

    def __init__(self) -> None:
        groups = WINDOW_DOCUMENTS // GROUP_DOCUMENTS
        self.sums = np.zeros(WINDOW_DOCUMENTS, np.uint16)
        self.group_largest = np.zeros(groups, np.uint16)
        self.bounds = np.zeros(groups, np.uint16)
        self.found = np.zeros(groups + 1, np.int64)
        self.slots = np.zeros(0, np.uint8)
        self.scores = np.zeros(WINDOW_DOCUMENTS, np.float32)
        self.terms = np.zeros((5, MOST_TERMS + 1), np.int64)
        self.weights = np.zeros(MOST_TERMS + 1, np.float32)
        self.fixed = np.zeros(MOST_TERMS + 1, np.uint32)
        self.floats = np.zeros(MOST_TERMS + 1, np.float32)
        self.histogram = np.zeros(BINS + 1, np.int64)
        self.hits = np.zeros(MOST_TERMS + 2, np.int64)
        self.buffer = np.zeros(BUFFER, np.int64)
        self.buffer_sums = np.zeros(BUFFER, np.uint16)
        self.other_keys = np.zeros(0, np.uint64)

    def fit(self, postings: TieredPostings, room: int, candidates: int) -> None:
        """Grow to what a segment, keys of results and the candidates for them need."""
        if len(self.other_keys) < room:
            self.other_keys = np.zeros(room, np.uint64)
        if len(self.buffer) < 4 * candidates:
            self.buffer = np.zeros(4 * candidates, np.int64)
            self.buffer_sums = np.zeros(4 * candidates, np.uint16)
        if len(self.slots) < len(postings.units):
            self.slots = np.zeros(len(postings.units), np.uint8)


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


# Whole numbers: a posting adds floor(weight · impact) in units of FULL's scale.


def _added(fixed: int, weight: float, impact: Any) -> int:
    """What a posting adds: by 8-bit codes, whole numbers with 8 fractional bits; by floats, their product."""
    raise NotImplementedError("for Numba")


@overload(_added, inline="always")
def _added_typed(fixed: Any, weight: Any, impact: Any) -> Any:  # noqa: ARG001
    if isinstance(impact, numba.types.Integer):

        def added(fixed: Any, weight: Any, impact: Any) -> Any:  # noqa: ARG001
            return (fixed * np.uint32(impact)) >> np.uint32(FRACTION_BITS)

    else:

        def added(fixed: Any, weight: Any, impact: Any) -> Any:  # noqa: ARG001
            return np.uint32(weight * impact)

    return added


@numba.njit(nogil=True, cache=True, boundscheck=False)
def _scatter(
    sums: NDArray[np.uint16],
    places: NDArray[np.uint16],
    impacts: NDArray[Any],
    first: int,
    last: int,
    fixed: int,
    weight: float,
) -> None:
    for posting in range(first, last):
        place = np.intp(places[posting])
        sums[place] = np.uint16(sums[place] + _added(fixed, weight, impacts[posting]))


@numba.njit(nogil=True, cache=True, boundscheck=False)
def _largest_of_groups(sums: NDArray[np.uint16], largest: NDArray[np.uint16], groups: int) -> None:
    """The largest sum of each group of a window; members lie `groups` apart, so whole vectors are compared."""
    largest[:groups] = 0
    for member in range(GROUP_DOCUMENTS):
        of_member = sums[member * groups : (member + 1) * groups]
        for group in range(groups):
            largest[group] = of_member[group] if of_member[group] > largest[group] else largest[group]


@numba.njit(nogil=True, cache=True, boundscheck=False)
def _groups_from(
    enough: int, group_largest: NDArray[np.uint16], groups: int, found: NDArray[np.int64]
) -> int:
    """List the groups whose largest sum is `enough`; returns how many. Without a branch: most are not."""
    count = 0
    for group in range(groups):
        found[count] = group
        count += np.intp(group_largest[group] >= enough)
    return count


@numba.njit(nogil=True, cache=True, boundscheck=False)
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


@numba.njit(nogil=True, cache=True, boundscheck=False)
def _add_bounds(
    bounds: NDArray[np.uint16], residuals: NDArray[np.uint8], start: int, groups: int, weight: int
) -> None:
    of_term = residuals[start : start + groups]
    for group in range(groups):
        bounds[group] += np.uint16(weight) * np.uint16(of_term[group])


@numba.njit(nogil=True, cache=True, boundscheck=False)
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


@numba.njit(nogil=True, cache=True, boundscheck=False)
def _prefetch_row(
    row: int, row_starts: NDArray[np.int64], row_terms: NDArray[Any], row_impacts: NDArray[Any]
) -> None:
    first, last = row_starts[row], row_starts[row + 1]
    for entry in range(first, last, LINE_BYTES // row_terms.itemsize):
        prefetch(row_terms, entry)
    for entry in range(first, last, LINE_BYTES // row_impacts.itemsize):
        prefetch(row_impacts, entry)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def _score_buffer(
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


@numba.njit(nogil=True, cache=True, boundscheck=False)
def _search_exhaustively(
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
            term = _lower_bound(units, query_units[place], term)
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


@numba.njit(nogil=True, cache=True, boundscheck=False)
def _lower_bound(units: NDArray[np.uint32], wanted: int, low: int) -> int:
    high = len(units)
    while low < high:
        middle = (low + high) // 2
        if units[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@numba.njit(nogil=True, cache=True, boundscheck=False)
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


@numba.njit(nogil=True, cache=True, boundscheck=False)
def _level(worth: np.float32, largest: np.float32) -> int:
    return min(max(np.int64((LEVELS - 1) * (worth / (2 * largest))), 0), LEVELS - 1)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def _prefetch_run(
    first: int, last: int, posting_places: NDArray[np.uint16], posting_impacts: NDArray[Any]
) -> None:
    last = min(last, first + MOST_AHEAD)
    for posting in range(first, last, LINE_BYTES // posting_places.itemsize):
        prefetch(posting_places, posting)
    for posting in range(first, last, LINE_BYTES // posting_impacts.itemsize):
        prefetch(posting_impacts, posting)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def _scatter_window(
    window: int,
    groups: int,
    chosen: int,
    terms: NDArray[np.int64],
    fixed: NDArray[np.uint32],
    floats: NDArray[np.float32],
    term_runs: NDArray[np.uint32],
    run_starts: NDArray[np.uint32],
    base: int,
    posting_places: NDArray[np.uint16],
    posting_impacts: NDArray[Any],
    allowed_rows: NDArray[np.int64],
    start: int,
    end: int,
    sums: NDArray[np.uint16],
    group_largest: NDArray[np.uint16],
    counts: NDArray[np.int64],
) -> None:
    """Add up the chosen tiers of one window, and find the largest sum of each group."""
    for place in range(chosen):  # all at once, so that the cache misses of looking them up overlap
        run = np.int64(term_runs[terms[0, place]])
        terms[3, place] = base + run_starts[run, window]
        terms[4, place] = base + run_starts[run + terms[1, place], window]
    for place in range(min(RUNS_AHEAD, chosen)):
        _prefetch_run(terms[3, place], terms[4, place], posting_places, posting_impacts)
    for place in range(chosen):
        if place + RUNS_AHEAD < chosen:
            ahead = place + RUNS_AHEAD
            _prefetch_run(terms[3, ahead], terms[4, ahead], posting_places, posting_impacts)
        first, last = terms[3, place], terms[4, place]
        _scatter(sums, posting_places, posting_impacts, first, last, fixed[place], floats[place])
        counts[POSTINGS] += last - first
    if len(allowed_rows):
        group_largest[:groups] = 0
        for place in range(np.searchsorted(allowed_rows, start), np.searchsorted(allowed_rows, end)):
            group, member = divmod(allowed_rows[place] - start, GROUP_DOCUMENTS)
            group_largest[group] = max(group_largest[group], sums[member * groups + group])
    else:  # of all documents, allowed or not: as a bound good enough where most are
        _largest_of_groups(sums, group_largest, groups)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def _nth_largest(sums: NDArray[np.uint16], count: int, wanted: int, histogram: NDArray[np.int64]) -> int:
    """A sum, ≥ 1, that about the `wanted` largest of `count` reach: at least so many, if there are."""
    histogram[:] = 0
    for place in range(count):
        histogram[sums[place] >> BIN_BITS] += 1
    level, above = BINS, 0
    while level > 0 and above < wanted:
        level -= 1
        above += histogram[level]
    return max(level << BIN_BITS, 1)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def _keep_best(
    buffer: NDArray[np.int64],
    buffer_sums: NDArray[np.uint16],
    filled: int,
    wanted: int,
    histogram: NDArray[np.int64],
) -> tuple[int, int]:
    """Keep about the `wanted` candidates of the largest sums; returns how many, and the sum that they reach."""
    threshold = _nth_largest(buffer_sums, filled, wanted, histogram)
    kept = 0
    room = len(buffer) // 2
    for place in range(filled):
        if buffer_sums[place] >= threshold and kept < room:
            buffer[kept] = buffer[place]
            buffer_sums[kept] = buffer_sums[place]
            kept += 1
    return kept, threshold


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
                place = _lower_bound(units, of_query[entry], place)
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
            sizes[query] = _search_exhaustively(
                units, of_query, weights_of_query, first_row, window_documents, window_postings, term_runs,
                run_starts, posting_places, posting_impacts, step, allowed, keys, size, k, scores, counts,
            )  # fmt: skip
            continue

        for place in range(chosen):
            floats[place] = weights[place + 1] * scale
            fixed[place] = np.uint32(floats[place] * step * np.float32(1 << FRACTION_BITS))
            slots[terms[0, place]] = place + 1

        if are_few:
            for first in range(0, len(allowed_rows), len(buffer)):
                filled = min(len(buffer), len(allowed_rows) - first)
                for place in range(filled):
                    buffer[place] = allowed_rows[first + place]
                    prefetch(row_starts, buffer[place])
                size = _score_buffer(
                    buffer, filled, first_row, row_starts, row_terms, row_impacts, step, slots, weights, hits,
                    keys, size, k, counts,
                )  # fmt: skip
        elif mode == APPROXIMATE_MODE:
            # 1. and 2. Scatter, and keep the documents that got most.
            budget = max(effort * total_postings, np.float64(4 * candidates))
            _choose_depths(
                chosen, terms, weights, largest, term_runs, run_lengths, run_largest, budget, histogram
            )
            threshold, filled = 1, 0
            for window in range(len(window_documents) - 1):
                start, end = window_documents[window], window_documents[window + 1]
                groups = (end - start + GROUP_DOCUMENTS - 1) // GROUP_DOCUMENTS
                _scatter_window(
                    window, groups, chosen, terms, fixed, floats, term_runs, run_starts, window_postings[window],
                    posting_places, posting_impacts, allowed_rows, start, end, sums, group_largest, counts,
                )  # fmt: skip
                if filled < candidates:  # no good threshold yet: the best groups of this window set one
                    threshold = max(threshold, _nth_largest(group_largest, groups, candidates, histogram))
                for place in range(_groups_from(threshold, group_largest, groups, found)):
                    group = found[place]
                    if filled > len(buffer) - GROUP_DOCUMENTS:
                        filled, threshold = _keep_best(buffer, buffer_sums, filled, candidates, histogram)
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
                    filled, threshold = _keep_best(buffer, buffer_sums, filled, candidates, histogram)
            if filled > candidates:
                filled, threshold = _keep_best(buffer, buffer_sums, filled, candidates, histogram)
            if len(allowed) and filled < k:  # too few of those that may be found were met
                size = _search_exhaustively(
                    units, of_query, weights_of_query, first_row, window_documents, window_postings, term_runs,
                    run_starts, posting_places, posting_impacts, step, allowed, keys, size, k, scores, counts,
                )  # fmt: skip
            else:
                size = _score_buffer(
                    buffer, filled, first_row, row_starts, row_terms, row_impacts, step, slots, weights, hits,
                    keys, size, k, counts,
                )  # fmt: skip
        else:
            size = keep_best(keys, size, k)
            other_keys[:size] = keys[:size]
            limit = total_postings // POSTINGS_PER_SCORED + documents // DOCUMENTS_PER_SCORED + 2 * candidates
            is_proved, proved_size = _prove(
                candidates, limit, scale, chosen, total_postings,
                first_row, window_documents, window_postings, term_runs, run_lengths, run_largest, run_starts,
                posting_places, posting_impacts, row_starts, row_terms, row_impacts, residual_slots,
                residual_starts, residuals, residual_step, step, allowed, allowed_rows, keys, size, k, sums,
                group_largest, bounds, found, slots, terms, weights, fixed, floats, histogram, hits, buffer, counts,
            )  # fmt: skip
            if is_proved:
                size = proved_size
            else:
                keys[:size] = other_keys[:size]
                size = _search_exhaustively(
                    units, of_query, weights_of_query, first_row, window_documents, window_postings, term_runs,
                    run_starts, posting_places, posting_impacts, step, allowed, keys, size, k, scores, counts,
                )  # fmt: skip
        for place in range(chosen):
            slots[terms[0, place]] = 0
        sizes[query] = size


@numba.njit(nogil=True, cache=True, boundscheck=False)
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


@numba.njit(nogil=True, cache=True, boundscheck=False)
def _prove(
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
        _scatter_window(
            window, groups, chosen, terms, fixed, floats, term_runs, run_starts, window_postings[window],
            posting_places, posting_impacts, allowed_rows, start, end, sums, group_largest, counts,
        )  # fmt: skip
        if needed > 0:
            surely = np.int64(min(needed * scale, FULL)) + 1
        else:
            surely = _nth_largest(group_largest, groups, candidates, histogram)
        for place in range(_groups_from(surely, group_largest, groups, found)):
            group = found[place]
            for member in range(GROUP_DOCUMENTS):
                row = start + group * GROUP_DOCUMENTS + member
                if sums[member * groups + group] >= surely and (len(allowed) == 0 or allowed[row]):
                    buffer[filled] = row
                    prefetch(row_starts, row)
                    filled += 1
            if filled > len(buffer) - GROUP_DOCUMENTS:
                scored += filled
                size = _score_buffer(
                    buffer, filled, first_row, row_starts, row_terms, row_impacts, step, slots, weights, hits,
                    keys, size, k, counts,
                )  # fmt: skip
                filled = 0
        scored += filled
        size = _score_buffer(
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
                size = _score_buffer(
                    buffer, filled, first_row, row_starts, row_terms, row_impacts, step, slots, weights, hits,
                    keys, size, k, counts,
                )  # fmt: skip
                filled = 0
                size = keep_best(keys, size, k)
                needed = needed_score(keys, size, k)
        sums[: groups * GROUP_DOCUMENTS] = 0
        scored += filled
        size = _score_buffer(
            buffer, filled, first_row, row_starts, row_terms, row_impacts, step, slots, weights, hits, keys, size, k,
            counts,
        )  # fmt: skip
        filled = 0
        size = keep_best(keys, size, k)
        needed = needed_score(keys, size, k)
    return True, size
