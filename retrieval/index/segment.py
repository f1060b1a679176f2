"""A segment: an immutable run of documents with their postings, stored text and fields, memory-mapped.

Postings lie in windows of at most 65,536 consecutive documents, so that a document's number inside its window
fits 16 bits and the window's scores fit a core's second-level cache. Within a window they are sorted by unit,
then by document.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numba
import numpy as np
import orjson
from numpy.typing import NDArray

from retrieval.index.arrays import map_array
from retrieval.index.fields import FieldColumn
from retrieval.index.manifest import DeletesEntry, FieldKind, SegmentEntry
from retrieval.index.string_table import StringTable, gather_strings
from runtime.activations import SparseActivations

WINDOW_DOCUMENTS = 1 << 16

SEGMENTS_FOLDER = "segments"
DELETES_FOLDER = "deletes"


class Segment:
    """One segment, open for reading.

    Attributes:
        ids: document ids by row.
        window_documents: int64 ``[windows + 1]``, each window's range of rows.
        window_terms: int64 ``[windows + 1]``, each window's range in `term_units`.
        window_postings: int64 ``[windows + 1]``, each window's range in the postings.
        term_units: uint32, the units of a window, ascending.
        term_starts: uint32, the first posting of each, from the start of the window's postings.
        posting_rows: uint16 ``[postings]``, document numbers inside the window.
        posting_impacts: float32 ``[postings]``, > 0.
    """

    def __init__(self, index: Path, entry: SegmentEntry, fields: dict[str, FieldKind], stored: bool) -> None:
        folder = index / SEGMENTS_FOLDER / entry.name
        files = entry.files

        def column(name: str, dtype: type) -> NDArray[Any]:
            return map_array(folder / name, dtype, files[name])

        self.entry = entry
        self.num_documents = entry.documents
        self.ids = StringTable.open(folder, "ids", files)
        self.window_documents: NDArray[np.int64] = column("window.documents", np.int64)
        self.window_terms: NDArray[np.int64] = column("window.terms", np.int64)
        self.window_postings: NDArray[np.int64] = column("window.postings", np.int64)
        self.term_units: NDArray[np.uint32] = column("term.units", np.uint32)
        self.term_starts: NDArray[np.uint32] = column("term.starts", np.uint32)
        self.posting_rows: NDArray[np.uint16] = column("posting.rows", np.uint16)
        self.posting_impacts: NDArray[np.float32] = column("posting.impacts", np.float32)
        self.fields = {name: FieldColumn.open(folder, name, kind, files) for name, kind in fields.items()}
        self._stored = (
            (column("stored.data", np.uint8), column("stored.offsets", np.int64)) if stored else None
        )
        self._packed_deletes = _map_deletes(index, entry.deletes)

    @property
    def num_windows(self) -> int:
        return len(self.window_terms) - 1

    @cached_property
    def deleted(self) -> NDArray[np.bool_]:
        """bool ``[documents]``; unpacked on first use."""
        if self._packed_deletes is None:
            return np.zeros(self.num_documents, np.bool_)
        return np.unpackbits(self._packed_deletes, count=self.num_documents).view(np.bool_)

    @property
    def has_deletes(self) -> bool:
        return self._packed_deletes is not None

    def find(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """The row of each id, -1 where this segment has no live document of that id."""
        return self.live_rows(self.ids.find(ids))

    def live_rows(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """`rows` with -1 in place of deleted ones."""
        if not self.has_deletes:
            return rows
        return np.where((rows >= 0) & ~self.deleted[rows], rows, -1)

    def document(self, row: int) -> dict[str, Any]:
        """What is stored of a document: its id, title and text as far as they are kept, and its fields."""
        document: dict[str, Any] = {"_id": self.ids[row]}
        if self._stored is not None:
            data, offsets = self._stored
            document |= orjson.loads(data[offsets[row] : offsets[row + 1]].tobytes())
        for name, column in self.fields.items():
            value = column.value(row)
            if value is not None:
                document[name] = value
        return document

    def stored_sizes(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bytes stored of each of some documents."""
        if self._stored is None:
            return np.zeros(len(rows), np.int64)
        offsets = self._stored[1]
        return offsets[rows + 1] - offsets[rows]

    def stored_rows(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
        """What is stored of some documents, one after the other, and their offsets from 0."""
        if self._stored is None:
            return None
        data, ends = gather_strings(*self._stored, rows)
        return data, np.concatenate([np.zeros(1, np.int64), ends])

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


def _map_deletes(index: Path, entry: DeletesEntry | None) -> NDArray[np.uint8] | None:
    if entry is None:
        return None
    packed: NDArray[np.uint8] = map_array(index / DELETES_FOLDER / entry.name, np.uint8, entry.file)
    return packed


@numba.njit(nogil=True, cache=True)
def _transpose_window(
    term_units: NDArray[np.uint32],
    term_starts: NDArray[np.uint32],
    rows: NDArray[np.uint16],
    impacts: NDArray[np.float32],
    documents: int,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """A window's postings turned back into document rows, by counting sort."""
    indptr = np.zeros(documents + 1, np.int64)
    for posting in range(len(rows)):
        indptr[rows[posting] + 1] += 1
    for document in range(documents):
        indptr[document + 1] += indptr[document]
    place = indptr[:-1].copy()
    units = np.empty(len(rows), np.int32)
    weights = np.empty(len(rows), np.float32)
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
    impacts: NDArray[np.float32],
    local: int,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The postings of one document in its window: a binary search in every list."""
    units = np.empty(len(term_units), np.int32)
    weights = np.empty(len(term_units), np.float32)
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
    impacts: NDArray[np.float32],
    local: int,
    wanted: NDArray[np.int32],
) -> NDArray[np.float32]:
    """The impacts of some units (ascending) in one document of a window, 0 where it does not have them."""
    found = np.zeros(len(wanted), np.float32)
    term = 0
    for place in range(len(wanted)):
        term = _lower_bound(term_units, wanted[place], term, len(term_units))
        if term < len(term_units) and term_units[term] == wanted[place]:
            start, end = _term_postings(term_starts, term, len(rows))
            posting = _lower_bound(rows, local, start, end)
            if posting < end and rows[posting] == local:
                found[place] = impacts[posting]
    return found
