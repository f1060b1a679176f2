"""Adding up postings of the tiers layout in 16-bit whole numbers, and finding the documents that got most.

A posting adds floor(weight · impact) in units of `FULL`'s scale. The sums of a window of 65,536 documents are 128 KB
and stay in a core's second-level cache while postings stream by; groups of 32 documents have a largest sum each, so
that most documents are never looked at one by one.
"""

# mypy: disable-error-code="arg-type,assignment,call-arg,index,return-value"
# Numba's types are not Python's: whole numbers and floats of fixed sizes mix freely inside kernels.

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.extending import overload
from numpy.typing import NDArray

from retrieval.index.tiered_postings import GROUP_DOCUMENTS
from retrieval.search.counters import POSTINGS
from runtime.kernels.prefetch import LINE_BYTES, prefetch

FULL = np.float32(64000)
"""What the largest score that a query's weights allow is in whole numbers; the rest of 16 bits is for rounding."""
FRACTION_BITS = 8
BIN_BITS = 6
BINS = 1 << (16 - BIN_BITS)
"""Classes that sums are counted in, to find about the n-th largest."""
RUNS_AHEAD, MOST_AHEAD = 2, 512
"""Runs whose memory is asked for while one is added up, and postings of each; the processor follows longer ones."""


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


@numba.njit(nogil=True, boundscheck=False)
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


@numba.njit(nogil=True, boundscheck=False)
def _prefetch_run(
    first: int, last: int, posting_places: NDArray[np.uint16], posting_impacts: NDArray[Any]
) -> None:
    last = min(last, first + MOST_AHEAD)
    for posting in range(first, last, LINE_BYTES // posting_places.itemsize):
        prefetch(posting_places, posting)
    for posting in range(first, last, LINE_BYTES // posting_impacts.itemsize):
        prefetch(posting_impacts, posting)


@numba.njit(nogil=True, boundscheck=False)
def scatter_window(
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


@numba.njit(nogil=True, boundscheck=False)
def _largest_of_groups(sums: NDArray[np.uint16], largest: NDArray[np.uint16], groups: int) -> None:
    """The largest sum of each group of a window; members lie `groups` apart, so whole vectors are compared."""
    largest[:groups] = 0
    for member in range(GROUP_DOCUMENTS):
        of_member = sums[member * groups : (member + 1) * groups]
        for group in range(groups):
            largest[group] = of_member[group] if of_member[group] > largest[group] else largest[group]


@numba.njit(nogil=True, boundscheck=False)
def groups_from(enough: int, group_largest: NDArray[np.uint16], groups: int, found: NDArray[np.int64]) -> int:
    """List the groups whose largest sum is `enough`; returns how many. Without a branch: most are not."""
    count = 0
    for group in range(groups):
        found[count] = group
        count += np.intp(group_largest[group] >= enough)
    return count


@numba.njit(nogil=True, boundscheck=False)
def nth_largest(sums: NDArray[np.uint16], count: int, wanted: int, histogram: NDArray[np.int64]) -> int:
    """A sum, ≥ 1, that about the `wanted` largest of `count` reach: at least so many, if there are."""
    histogram[:] = 0
    for place in range(count):
        histogram[sums[place] >> BIN_BITS] += 1
    level, above = BINS, 0
    while level > 0 and above < wanted:
        level -= 1
        above += histogram[level]
    return max(level << BIN_BITS, 1)
