"""Writes one segment: runs of documents go in, each a window; memory is bounded by one window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.index.arrays import ArrayFolderWriter
from retrieval.index.fields import FieldColumnWriter
from retrieval.index.impact_codec import ImpactCodec
from retrieval.index.manifest import FieldKind, Layout, SegmentEntry
from retrieval.index.segment import SEGMENTS_FOLDER
from retrieval.index.string_table import StringTableWriter
from retrieval.index.tiered_writer import Windows, write_tiers
from runtime.activations import SparseActivations
from runtime.dispatch import transpose
from runtime.progress import Advance

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

    def __init__(
        self,
        index: Path,
        name: str,
        fields: Mapping[str, FieldKind],
        counted: bool,
        impacts: ImpactCodec = "float32",
    ) -> None:
        self.name = name
        self.codec = impacts
        self._folder = ArrayFolderWriter(index / SEGMENTS_FOLDER / name)
        self._ids = StringTableWriter(self._folder, "ids")
        self._fields = {field: FieldColumnWriter(self._folder, field, kind) for field, kind in fields.items()}
        self._counted = counted
        self._rows = self._documents = self._terms = self._postings = self._stored_bytes = 0
        self._layout: Layout | None = None

    def add(self, run: DocumentRun) -> None:
        """Append a run as one window."""
        self.add_window(run.activations, run.lengths)
        self.add_documents(run.ids, run.stored, run.field_values)

    def add_window(self, activations: SparseActivations, lengths: NDArray[np.int64] | None = None) -> None:
        """Append the postings of at most `WINDOW_DOCUMENTS` documents, one a row, as one window."""
        self._start_windows()
        by_unit = transpose(activations)
        units = np.flatnonzero(np.diff(by_unit.indptr))
        self._append("term.units", np.uint32, units)
        self._append("term.starts", np.uint32, by_unit.indptr[units])
        self._append("posting.rows", np.uint16, by_unit.units)
        if self._counted:
            self._append(COUNTS_FILE, np.float32, by_unit.weights)
        else:
            self._append("posting.impacts", np.float32, by_unit.weights)
        if lengths is not None:
            self._append(LENGTHS_FILE, np.int64, lengths)
        self._rows += activations.num_rows
        self._terms += len(units)
        self._postings += activations.nnz
        self._append("window.documents", np.int64, np.array([self._rows]))
        self._append("window.terms", np.int64, np.array([self._terms]))
        self._append("window.postings", np.int64, np.array([self._postings]))

    def _start_windows(self) -> None:
        if self._layout is None:
            self._layout = "windows"
            for name in ("window.documents", "window.terms", "window.postings"):
                self._append(name, np.int64, np.zeros(1, np.int64))

    def add_tiers(
        self,
        windows: Windows,
        postings: int,
        num_units: int,
        least_step: float = 0.0,
        advance: Advance | None = None,
    ) -> None:
        """Write all postings in tiers instead of windows; see `write_tiers`."""
        self._layout = "tiers"
        self._rows, self._postings = write_tiers(
            self._folder, windows, postings, num_units, self.codec, least_step, advance
        )

    def add_documents(
        self,
        ids: Sequence[str],
        stored: tuple[NDArray[np.uint8], NDArray[np.int64]] | None,
        field_values: Mapping[str, list[Any]],
    ) -> None:
        """Append what is kept beside the postings, in the order of the rows; in pieces of any size."""
        self._ids.append(ids)
        for name, column in self._fields.items():
            column.append(field_values[name])
        if stored is not None:
            data, offsets = stored
            self._append("stored.data", np.uint8, data)
            self._append("stored.offsets", np.int64, offsets[min(self._documents, 1) :] + self._stored_bytes)
            self._stored_bytes += int(offsets[-1])
        self._documents += len(ids)

    def _append(self, name: str, dtype: type, values: NDArray[Any]) -> None:
        self._folder.array(name, dtype).append(values)

    def close(self) -> SegmentEntry:
        """Write what spans the windows, make everything durable, and describe the segment."""
        self._start_windows()
        if self._rows != self._documents:
            raise ValueError(f"{self._rows} rows of postings, but {self._documents} documents")
        self._ids.close()
        for column in self._fields.values():
            column.close()
        files = self._folder.close()
        return SegmentEntry(
            name=self.name,
            layout=self._layout or "windows",
            impacts=self.codec if self._layout == "tiers" else "float32",
            documents=self._documents,
            postings=self._postings,
            files=files,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.__exit__(kind, error, trace)
