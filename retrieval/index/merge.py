"""Merging segments: their live documents, in order, as one new segment, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.index.impact_codec import ImpactCodec
from retrieval.index.manifest import FieldKind, SegmentEntry
from retrieval.index.segment import Segment
from retrieval.index.segment_writer import SegmentWriter
from retrieval.index.tiered_postings import TieredPostings
from retrieval.index.window_postings import WINDOW_DOCUMENTS
from runtime.activations import SparseActivations
from runtime.progress import Advance

WINDOW_POSTINGS = 1 << 23
"""Windows are joined up to so many postings: some 64 MB, of which a few copies are alive at once."""

TIERED_DOCUMENTS = 1 << 13
"""From so many documents on, a merged segment is laid out in tiers; below, adding up all postings is as fast."""

PIECE_DOCUMENTS = 1 << 12
PIECE_BYTES = 1 << 24
"""What is stored of documents is copied in pieces of at most this size."""


def is_provisional(entry: SegmentEntry, live: int) -> bool:
    """Whether a segment of so many live documents would be laid out in tiers by a merge, but is not."""
    return entry.layout == "windows" and live >= TIERED_DOCUMENTS


def merge_segments(
    index: Path,
    name: str,
    segments: Sequence[Segment],
    fields: Mapping[str, FieldKind],
    num_units: int,
    advance: Advance | None = None,
    *,
    impacts: ImpactCodec = "float32",
) -> SegmentEntry:
    """Write the live documents of `segments` as the segment `name`; their order stays, and so do their impacts.

    Impacts stay bit by bit, but for those that become 8-bit codes: those of segments that hold floats, and those of
    8-bit segments with a finer step than the merged one.

    `advance` is called with the number of documents done since the last call.
    """
    with SegmentWriter(index, name, fields, counted=False, impacts=impacts) as writer:
        if sum(segment.entry.live for segment in segments) >= TIERED_DOCUMENTS:
            postings = sum(segment.entry.postings for segment in segments)
            writer.add_tiers(
                lambda: _joined(_live_windows(segments, num_units), num_units),
                postings,
                num_units,
                _coarsest_step(segments),
                advance,
            )
        else:
            for window in _joined(_live_windows(segments, num_units), num_units):
                writer.add_window(window)
                if advance:
                    advance(window.num_rows)
        for segment in segments:
            for rows in _pieces(segment):
                writer.add_documents(
                    segment.ids.take(rows),
                    segment.stored_rows(rows),
                    {
                        field: [column.value(row) for row in rows.tolist()]
                        for field, column in segment.fields.items()
                    },
                )
        return writer.close()


def _coarsest_step(segments: Sequence[Segment]) -> float:
    """The largest step of those that hold 8-bit codes; 0 if none does."""
    return max(
        (
            float(segment.postings.steps[0])
            for segment in segments
            if segment.entry.impacts == "uint8" and isinstance(segment.postings, TieredPostings)
        ),
        default=0.0,
    )


def _live_windows(segments: Sequence[Segment], num_units: int) -> Iterator[SparseActivations]:
    """The live documents of every window of every segment, as rows."""
    for segment in segments:
        for window in range(segment.num_windows):
            # No name for what is given out: it would keep the window alive until the next one is there.
            yield _live_window(segment, window, num_units)


def _live_window(segment: Segment, window: int, num_units: int) -> SparseActivations:
    rows = segment.window_rows(window, num_units)
    live = ~segment.deleted[segment.window_documents[window] : segment.window_documents[window + 1]]
    return rows if live.all() else rows[np.flatnonzero(live)]


def _joined(windows: Iterator[SparseActivations], num_units: int) -> Iterator[SparseActivations]:
    """The same rows in windows as large as they may be."""
    waiting: list[SparseActivations] = []
    documents = postings = 0
    for window in windows:
        start = 0
        while start < window.num_rows:
            end = min(window.num_rows, start + WINDOW_DOCUMENTS - documents)
            room = postings + int(window.indptr[end] - window.indptr[start]) <= WINDOW_POSTINGS
            if end == start or (waiting and not room):
                yield _taken(waiting, num_units)
                documents = postings = 0
                continue
            waiting.append(window[start:end])
            documents += end - start
            postings += waiting[-1].nnz
            start = end
    if waiting:
        yield _taken(waiting, num_units)


def _taken(parts: list[SparseActivations], num_units: int) -> SparseActivations:
    """The rows of `parts` as one batch; `parts` is empty afterwards, so that they do not exist twice."""
    rows = parts[0] if len(parts) == 1 else SparseActivations.concat(parts)
    parts.clear()
    return SparseActivations(rows.indptr, rows.units, rows.weights, num_units)


def _pieces(segment: Segment) -> Iterator[NDArray[np.int64]]:
    """The live rows of a segment, a bounded piece at a time."""
    live = np.flatnonzero(~segment.deleted)
    sizes = segment.stored_sizes(live)
    start = 0
    while start < len(live):
        fitting = int(
            np.searchsorted(np.cumsum(sizes[start : start + PIECE_DOCUMENTS]), PIECE_BYTES, side="right")
        )
        end = start + max(1, fitting)
        yield live[start:end]
        start = end
