"""Writes one segment: runs of documents go in, each a window; memory is bounded by one window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.index.arrays import ArrayFolderWriter
from retrieval.index.fields import FieldColumnWriter
from retrieval.index.manifest import FieldKind, SegmentEntry
from retrieval.index.segment import SEGMENTS_FOLDER, WINDOW_DOCUMENTS
from retrieval.index.string_table import StringTableWriter
from runtime.activations import SparseActivations
from runtime.dispatch import transpose

COUNTS_FILE = "posting.counts"
"""Term counts of a segment whose impacts wait for the statistics of the whole collection."""
LENGTHS_FILE = "document.lengths"


@dataclass(frozen=True, slots=True)
class DocumentRun:
    """Consecutive documents on their way into a segment, at most one window of them.

    Attributes:
        ids: distinct document ids.
        activations: one row a document; units distinct within a row, weights > 0.
        stored: concatenated JSON of what is stored, and offsets from 0; None when nothing is.
        field_values: per field, a value or None for each document.
        lengths: int64 ``[documents]`` where `activations` are counts that wait for statistics, else None.
    """

    ids: list[str]
    activations: SparseActivations
    stored: tuple[NDArray[np.uint8], NDArray[np.int64]] | None
    field_values: Mapping[str, list[Any]]
    lengths: NDArray[np.int64] | None = None


class SegmentWriter:
    """Collects runs into one segment folder."""

    def __init__(self, index: Path, name: str, fields: Mapping[str, FieldKind], counted: bool) -> None:
        self.name = name
        self._folder = ArrayFolderWriter(index / SEGMENTS_FOLDER / name)
        self._ids = StringTableWriter(self._folder, "ids")
        self._fields = {field: FieldColumnWriter(self._folder, field, kind) for field, kind in fields.items()}
        self._impacts_file = COUNTS_FILE if counted else "posting.impacts"
        self._documents = self._terms = self._postings = self._stored_bytes = 0
        self._append("window.terms", np.int64, np.zeros(1, np.int64))
        self._append("window.postings", np.int64, np.zeros(1, np.int64))

    def add(self, run: DocumentRun) -> None:
        """Append a run as one window; every run but the last must be a full window."""
        if self._documents % WINDOW_DOCUMENTS:
            raise ValueError("only the last run of a segment may be shorter than a window")
        self._add_postings(run.activations)
        self._ids.append(run.ids)
        for name, column in self._fields.items():
            column.append(run.field_values[name])
        if run.stored is not None:
            data, offsets = run.stored
            self._append("stored.data", np.uint8, data)
            self._append("stored.offsets", np.int64, offsets[min(self._documents, 1) :] + self._stored_bytes)
            self._stored_bytes += int(offsets[-1])
        if run.lengths is not None:
            self._append(LENGTHS_FILE, np.int64, run.lengths)
        self._documents += len(run.ids)

    def _add_postings(self, activations: SparseActivations) -> None:
        by_unit = transpose(activations)
        units = np.flatnonzero(np.diff(by_unit.indptr))
        self._append("term.units", np.uint32, units)
        self._append("term.starts", np.uint32, by_unit.indptr[units])
        self._append("posting.rows", np.uint16, by_unit.units)
        self._append(self._impacts_file, np.float32, by_unit.weights)
        self._terms += len(units)
        self._postings += activations.nnz
        self._append("window.terms", np.int64, np.array([self._terms]))
        self._append("window.postings", np.int64, np.array([self._postings]))

    def _append(self, name: str, dtype: type, values: NDArray[Any]) -> None:
        self._folder.array(name, dtype).append(values)

    def close(self) -> SegmentEntry:
        """Write what spans the windows, make everything durable, and describe the segment."""
        self._ids.close()
        for column in self._fields.values():
            column.close()
        files = self._folder.close()
        return SegmentEntry(name=self.name, documents=self._documents, postings=self._postings, files=files)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.__exit__(kind, error, trace)
