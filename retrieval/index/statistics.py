"""Collection statistics over segments of counts, and the pass that turns those counts into impacts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.encoders.encoder import CountingEncoder
from retrieval.index.arrays import ArrayWriter, map_array, sync_folder
from retrieval.index.manifest import SegmentEntry
from retrieval.index.segment import SEGMENTS_FOLDER
from retrieval.index.segment_writer import COUNTS_FILE, LENGTHS_FILE
from runtime.activations import SparseActivations
from runtime.dispatch import transpose

PIECE_POSTINGS = 1 << 19
"""Postings weighed at a time: bounds the double-precision temporaries."""


class CountedSegment:
    """A segment that holds counts and document lengths, waiting for statistics."""

    def __init__(self, index: Path, entry: SegmentEntry, deleted: NDArray[np.bool_]) -> None:
        self.folder = index / SEGMENTS_FOLDER / entry.name
        self.entry = entry
        self.deleted = deleted
        self.lengths = self._map(LENGTHS_FILE, np.int64)
        self._window_documents = self._map("window.documents", np.int64)
        self._window_terms = self._map("window.terms", np.int64)
        self._window_postings = self._map("window.postings", np.int64)
        self._term_units = self._map("term.units", np.uint32)
        self._term_starts = self._map("term.starts", np.uint32)
        self._rows = self._map("posting.rows", np.uint16)
        self._counts = self._map(COUNTS_FILE, np.float32)

    def _map(self, name: str, dtype: type) -> NDArray[Any]:
        return map_array(self.folder / name, dtype, self.entry.files[name])

    @property
    def num_windows(self) -> int:
        return len(self._window_terms) - 1

    def windows(self) -> Iterator[SparseActivations]:
        """The counts of each window, one row a document; units ascending in a row."""
        for window in range(self.num_windows):
            terms = slice(self._window_terms[window], self._window_terms[window + 1])
            postings = slice(self._window_postings[window], self._window_postings[window + 1])
            rows, counts = self._rows[postings].astype(np.int32), self._counts[postings]
            starts = np.append(self._term_starts[terms].astype(np.int64), len(rows))
            documents = int(self._window_documents[window + 1] - self._window_documents[window])
            places = transpose(SparseActivations(starts, rows, counts, documents))
            units = self._term_units[terms].astype(np.int32)[places.units]
            yield SparseActivations(places.indptr, units, places.weights, int(units.max(initial=-1)) + 1)

    def pieces(self) -> Any:
        """Yield units, document rows and counts of the postings, in their order, piece by piece."""
        for window in range(len(self._window_terms) - 1):
            terms = slice(self._window_terms[window], self._window_terms[window + 1])
            first, last = self._window_postings[window : window + 2]
            ends = np.append(self._term_starts[terms][1:], last - first)
            units = np.repeat(self._term_units[terms], np.diff(ends, prepend=0))
            for start in range(0, last - first, PIECE_POSTINGS):
                piece = slice(first + start, min(first + start + PIECE_POSTINGS, last))
                rows = self._rows[piece].astype(np.int64) + self._window_documents[window]
                yield units[start : start + PIECE_POSTINGS], rows, self._counts[piece]


def collection_statistics(
    segments: Sequence[CountedSegment], num_units: int
) -> tuple[NDArray[np.int64], int, int]:
    """Document frequency of every unit, number of documents and their total length, deleted ones left out."""
    frequency = np.zeros(num_units, np.int64)
    documents = length = 0
    for segment in segments:
        for units, rows, _ in segment.pieces():
            live = units[~segment.deleted[rows]] if segment.deleted.any() else units
            frequency += np.bincount(live, minlength=num_units)
        documents += int(np.count_nonzero(~segment.deleted))
        length += int(segment.lengths[~segment.deleted].sum())
    return frequency, documents, length


def weigh_segment(segment: CountedSegment, encoder: CountingEncoder) -> SegmentEntry:
    """Write the impacts of a segment beside its counts, drop what is not needed then, and describe it anew."""
    impacts = ArrayWriter(segment.folder / "posting.impacts", np.float32)
    try:
        for units, rows, counts in segment.pieces():
            impacts.append(encoder.weigh(units, counts, segment.lengths[rows]))
        described = impacts.close()
    except BaseException:
        impacts.abandon()
        raise
    files = dict(segment.entry.files)
    for name in (COUNTS_FILE, LENGTHS_FILE):
        del files[name]
        (segment.folder / name).unlink()
    sync_folder(segment.folder)
    return segment.entry.model_copy(update={"files": {**files, "posting.impacts": described}})
