"""A segment: an immutable run of documents with their postings, stored text and fields, memory-mapped."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from retrieval.index.arrays import ArrayFile, map_array
from retrieval.index.fields import FieldColumn
from retrieval.index.manifest import DeletesEntry, FieldKind, SegmentEntry
from retrieval.index.string_table import StringTable, gather_strings
from retrieval.index.tiered_postings import TieredPostings
from retrieval.index.window_postings import WindowPostings
from runtime.activations import SparseActivations

SEGMENTS_FOLDER = "segments"
DELETES_FOLDER = "deletes"
NO_FILE = ArrayFile(bytes=0, sha256="")


class Segment:
    """One segment, open for reading.

    Attributes:
        ids: document ids by row.
        postings: in one of the two layouts.
        fields: the values of each field by row.
    """

    def __init__(self, index: Path, entry: SegmentEntry, fields: dict[str, FieldKind], stored: bool) -> None:
        folder = index / SEGMENTS_FOLDER / entry.name
        files = entry.files

        def column(name: str, dtype: type) -> NDArray[Any]:
            return map_array(folder / name, dtype, files[name])

        self.entry = entry
        self.num_documents = entry.documents
        self.ids = StringTable.open(folder, "ids", files)
        self.postings: WindowPostings | TieredPostings = (
            TieredPostings(column, entry.impacts, entry.documents)
            if entry.layout == "tiers"
            else WindowPostings(column)
        )
        self.fields = {name: FieldColumn.open(folder, name, kind, files) for name, kind in fields.items()}
        self._stored = (
            (column("stored.data", np.uint8), column("stored.offsets", np.int64)) if stored else None
        )
        self._packed_deletes = _map_deletes(index, entry.deletes)

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

    def without(self, dropped: NDArray[np.bool_]) -> Segment:
        """The same segment with some documents (bool ``[documents]``) deleted as well, for reading only."""
        deleted = self.deleted | dropped
        entry = DeletesEntry(name="", documents=int(np.count_nonzero(deleted)), file=NO_FILE)
        limited = copy(self)
        limited.entry = self.entry.model_copy(update={"deletes": entry})
        limited.deleted = deleted
        limited._packed_deletes = np.packbits(deleted)
        return limited

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

    # Postings, whatever their layout

    @property
    def num_windows(self) -> int:
        """Runs of rows that `window_rows` gives."""
        return self.postings.num_windows

    @property
    def window_documents(self) -> NDArray[np.int64]:
        """int64 ``[windows + 1]``, each run's range of rows; at most `WINDOW_DOCUMENTS` of them."""
        return self.postings.window_documents

    def window_rows(self, window: int, num_units: int) -> SparseActivations:
        """The documents of one run as rows: units ascending; weights are impacts."""
        return self.postings.window_rows(window, num_units)

    def row(self, row: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The units (ascending) and impacts of one document."""
        return self.postings.row(row)

    def impacts(self, row: int, wanted: NDArray[np.int32]) -> NDArray[np.float32]:
        """The impacts of some units (ascending) in one document, 0 where it does not have them."""
        return self.postings.impacts(row, wanted)


def _map_deletes(index: Path, entry: DeletesEntry | None) -> NDArray[np.uint8] | None:
    if entry is None:
        return None
    packed: NDArray[np.uint8] = map_array(index / DELETES_FOLDER / entry.name, np.uint8, entry.file)
    return packed
