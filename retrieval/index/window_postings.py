"""The windows layout: postings by unit, in windows of at most 65,536 consecutive documents.

A document's number inside its window fits 16 bits, and the window's scores fit a core's second-level cache. Within
a window postings are sorted by unit, then by document. It is what a writer can write at once; a merge of many
documents writes the tiers layout instead (see `tiered_postings`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from runtime.activations import SparseActivations

WINDOW_DOCUMENTS = 1 << 16

Column = Callable[[str, type], NDArray[Any]]


class WindowPostings:
    """The postings of a segment in windows, memory-mapped.

    Attributes:
        window_documents: int64 ``[windows + 1]``, each window's range of rows.
        window_terms: int64 ``[windows + 1]``, each window's range in `term_units`.
        window_postings: int64 ``[windows + 1]``, each window's range in the postings.
        term_units: uint32, the units of a window, ascending.
        term_starts: uint32, the first posting of each, from the start of the window's postings.
        posting_rows: uint16 ``[postings]``, document numbers inside the window.
        posting_impacts: float32 ``[postings]``, > 0.
    """

    def __init__(self, column: Column) -> None:
        """Args: `column` maps the array of a name and dtype."""
        self.window_documents: NDArray[np.int64] = column("window.documents", np.int64)
        self.window_terms: NDArray[np.int64] = column("window.terms", np.int64)
        self.window_postings: NDArray[np.int64] = column("window.postings", np.int64)
        self.term_units: NDArray[np.uint32] = column("term.units", np.uint32)
        self.term_starts: NDArray[np.uint32] = column("term.starts", np.uint32)
        self.posting_rows: NDArray[np.uint16] = column("posting.rows", np.uint16)
        self.posting_impacts: NDArray[np.float32] = column("posting.impacts", np.float32)

    @property
    def num_windows(self) -> int:
        return len(self.window_terms) - 1

    def window_rows(self, window: int, num_units: int) -> SparseActivations:
        """The documents of one window as rows: units ascending; weights are impacts."""
        documents = int(self.window_documents[window + 1] - self.window_documents[window])
        units, starts, rows, impacts = self._window(window)
        indptr, units, impacts = _transpose_window(units, starts, rows, impacts, documents)
        return SparseActivations(indptr, units, impacts, num_units)

    def row(self, row: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The units (ascending) and impacts of one document."""
        window, local = self._place(row)
        units, starts, rows, impacts = self._window(window)
        units, impacts = _document_postings(units, starts, rows, impacts, local)
        return units, impacts

    def impacts(self, row: int, wanted: NDArray[np.int32]) -> NDArray[np.float32]:
        """The impacts of some units (ascending) in one document, 0 where it does not have them."""
        window, local = self._place(row)
        units, starts, rows, impacts = self._window(window)
        found: NDArray[np.float32] = _document_impacts(units, starts, rows, impacts, local, wanted)
        return found

    def _place(self, row: int) -> tuple[int, int]:
        """The window of a document, and its number in there."""
        window = int(np.searchsorted(self.window_documents, row, side="right")) - 1
        return window, row - int(self.window_documents[window])

    def _window(self, window: int) -> tuple[NDArray[Any], ...]:
        terms = slice(self.window_terms[window], self.window_terms[window + 1])
        postings = slice(self.window_postings[window], self.window_postings[window + 1])
        return (
            self.term_units[terms],
            self.term_starts[terms],
            self.posting_rows[postings],
            self.posting_impacts[postings],
        )


@numba.njit(nogil=True, cache=True)
def _transpose_window(
    term_units: NDArray[np.uint32],
    term_starts: NDArray[np.uint32],
    rows: NDArray[np.uint16],
    impacts: NDArray[Any],
    documents: int,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[Any]]:
    """A window's postings turned back into document rows, by counting sort."""
    indptr = np.zeros(documents + 1, np.int64)
    for posting in range(len(rows)):
        indptr[rows[posting] + 1] += 1
    for document in range(documents):
        indptr[document + 1] += indptr[document]
    place = indptr[:-1].copy()
    units = np.empty(len(rows), np.int32)
    weights = np.empty(len(rows), impacts.dtype)
    for term in range(len(term_units)):
        end = term_starts[term + 1] if term + 1 < len(term_units) else len(rows)
        for posting in range(term_starts[term], end):
            row = rows[posting]
            units[place[row]] = term_units[term]
            weights[place[row]] = impacts[posting]
            place[row] += 1
    return indptr, units, weights


@numba.njit(nogil=True, cache=True, inline="always")
def _lower_bound(values: NDArray[Any], wanted: int, low: int, high: int) -> int:
    """The first place from `low` on, before `high`, whose value is not below `wanted`."""
    while low < high:
        middle = (low + high) // 2
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@numba.njit(nogil=True, cache=True, inline="always")
def _term_postings(term_starts: NDArray[np.uint32], term: int, postings: int) -> tuple[int, int]:
    """Where the postings of a window's term start and end."""
    end = np.int64(term_starts[term + 1]) if term + 1 < len(term_starts) else postings
    return np.int64(term_starts[term]), end  # type: ignore[return-value]


@numba.njit(nogil=True, cache=True)
def _document_postings(
    term_units: NDArray[np.uint32],
    term_starts: NDArray[np.uint32],
    rows: NDArray[np.uint16],
    impacts: NDArray[Any],
    local: int,
) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """The postings of one document in its window: a binary search in every list."""
    units = np.empty(len(term_units), np.int32)
    weights = np.empty(len(term_units), impacts.dtype)
    found = 0
    for term in range(len(term_units)):
        start, end = _term_postings(term_starts, term, len(rows))
        place = _lower_bound(rows, local, start, end)
        if place < end and rows[place] == local:
            units[found] = term_units[term]
            weights[found] = impacts[place]
            found += 1
    return units[:found].copy(), weights[:found].copy()


@numba.njit(nogil=True, cache=True)
def _document_impacts(
    term_units: NDArray[np.uint32],
    term_starts: NDArray[np.uint32],
    rows: NDArray[np.uint16],
    impacts: NDArray[Any],
    local: int,
    wanted: NDArray[np.int32],
) -> NDArray[Any]:
    """The impacts of some units (ascending) in one document of a window, 0 where it does not have them."""
    found = np.zeros(len(wanted), impacts.dtype)
    term = 0
    for place in range(len(wanted)):
        term = _lower_bound(term_units, wanted[place], term, len(term_units))
        if term < len(term_units) and term_units[term] == wanted[place]:
            start, end = _term_postings(term_starts, term, len(rows))
            posting = _lower_bound(rows, local, start, end)
            if posting < end and rows[posting] == local:
                found[place] = impacts[posting]
    return found
