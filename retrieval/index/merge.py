"""Merging segments: their live documents, in order, as one new segment; memory is bounded by two windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.index.manifest import FieldKind, SegmentEntry
from retrieval.index.segment import WINDOW_DOCUMENTS, Segment
from retrieval.index.segment_writer import DocumentRun, SegmentWriter
from runtime.activations import SparseActivations
from runtime.progress import progress


def merge_segments(
    index: Path, name: str, segments: Sequence[Segment], fields: Mapping[str, FieldKind], num_units: int
) -> SegmentEntry:
    """Write the live documents of `segments` as the segment `name`; impacts stay what they are, bit by bit."""
    total = sum(segment.entry.live for segment in segments)
    with (
        progress("merging", total) as advance,
        SegmentWriter(index, name, fields, counted=False) as writer,
    ):
        for run in _full_windows(_live_runs(segments, num_units), num_units):
            writer.add(run)
            advance(len(run.ids))
        return writer.close()


def _live_runs(segments: Sequence[Segment], num_units: int) -> Iterator[DocumentRun]:
    """The live documents of every window of every segment."""
    for segment in segments:
        for window in range(segment.num_windows):
            start = window * WINDOW_DOCUMENTS
            end = min(start + WINDOW_DOCUMENTS, segment.num_documents)
            rows = np.flatnonzero(~segment.deleted[start:end])
            activations = segment.window_rows(window, num_units)
            yield DocumentRun(
                ids=segment.ids.take(start + rows),
                activations=activations if len(rows) == end - start else activations[rows],
                stored=_select_strings(segment.stored_bytes(start, end), rows),
                field_values={
                    field: [column.value(start + row) for row in rows.tolist()]
                    for field, column in segment.fields.items()
                },
            )


def _full_windows(runs: Iterator[DocumentRun], num_units: int) -> Iterator[DocumentRun]:
    """The same documents in runs of a full window each, except the last."""
    pending: DocumentRun | None = None
    for run in runs:
        pending = run if pending is None else _join(pending, run, num_units)
        while len(pending.ids) >= WINDOW_DOCUMENTS:
            yield _part(pending, 0, WINDOW_DOCUMENTS)
            pending = _part(pending, WINDOW_DOCUMENTS, len(pending.ids))
    if pending is not None and pending.ids:
        yield pending


def _join(first: DocumentRun, second: DocumentRun, num_units: int) -> DocumentRun:
    activations = SparseActivations.concat([first.activations, second.activations])
    stored = None
    if first.stored is not None and second.stored is not None:
        (data, offsets), (more, further) = first.stored, second.stored
        stored = np.concatenate([data, more]), np.concatenate([offsets, further[1:] + offsets[-1]])
    return DocumentRun(
        first.ids + second.ids,
        SparseActivations(activations.indptr, activations.units, activations.weights, num_units),
        stored,
        {field: first.field_values[field] + second.field_values[field] for field in first.field_values},
    )


def _part(run: DocumentRun, start: int, end: int) -> DocumentRun:
    stored = None
    if run.stored is not None:
        data, offsets = run.stored
        stored = data[offsets[start] : offsets[end]], offsets[start : end + 1] - offsets[start]
    return DocumentRun(
        run.ids[start:end],
        run.activations[start:end],
        stored,
        {field: values[start:end] for field, values in run.field_values.items()},
    )


def _select_strings(
    strings: tuple[NDArray[np.uint8], NDArray[np.int64]] | None, rows: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
    if strings is None:
        return None
    data, offsets = strings
    if len(rows) == len(offsets) - 1:
        return data, offsets
    lengths = np.diff(offsets)[rows]
    selected = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(lengths, out=selected[1:])
    places = np.repeat(offsets[rows] - selected[:-1], lengths) + np.arange(selected[-1])
    return data[places], selected
