"""A segment as its writer sees it: what is on disk, and which documents have been deleted since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.index.arrays import ArrayWriter, map_array, sync_folder
from retrieval.index.fields import FieldColumn
from retrieval.index.manifest import DeletesEntry, FieldKind, SegmentEntry
from retrieval.index.segment import DELETES_FOLDER, SEGMENTS_FOLDER
from retrieval.index.segment_writer import COUNTS_FILE
from retrieval.index.string_table import StringTable


class WriterSegment:
    """One segment of the next commit."""

    def __init__(self, index: Path, entry: SegmentEntry) -> None:
        self.entry = entry
        self.ids = StringTable.open(index / SEGMENTS_FOLDER / entry.name, "ids", entry.files)
        self.deleted: NDArray[np.bool_] = np.zeros(entry.documents, np.bool_)
        if entry.deletes is not None:
            packed = map_array(index / DELETES_FOLDER / entry.deletes.name, np.uint8, entry.deletes.file)
            self.deleted = np.unpackbits(packed, count=entry.documents).view(np.bool_)
        self._changed = False

    @property
    def is_counted(self) -> bool:
        """Whether its postings hold counts that wait for the statistics of the collection."""
        return COUNTS_FILE in self.entry.files

    @property
    def live(self) -> int:
        return len(self.deleted) - int(np.count_nonzero(self.deleted))

    def delete(self, ids: Sequence[str]) -> int:
        """Mark documents as deleted; how many were there and live."""
        return self.delete_rows(self.ids.find(ids))

    def delete_all_of(self, other: WriterSegment) -> int:
        """The same for the documents of another segment, which take the place of these."""
        return self.delete_rows(self.ids.find_table(other.ids))

    def delete_rows(self, rows: NDArray[np.int64]) -> int:
        """Mark rows as deleted, -1 being none; how many were live."""
        rows = np.unique(rows[rows >= 0])
        rows = rows[~self.deleted[rows]]
        self.deleted[rows] = True
        self._changed |= len(rows) > 0
        return len(rows)

    def open_fields(self, index: Path, kinds: Mapping[str, FieldKind]) -> dict[str, FieldColumn]:
        """The values of each field by row."""
        folder = index / SEGMENTS_FOLDER / self.entry.name
        return {name: FieldColumn.open(folder, name, kind, self.entry.files) for name, kind in kinds.items()}

    def write_deletes(self, index: Path, generation: int) -> None:
        """Write the bitmap of deleted documents under a new name, if it changed since the last commit."""
        if not self._changed:
            return
        folder = index / DELETES_FOLDER
        folder.mkdir(exist_ok=True)
        name = f"{self.entry.name}-{generation:06d}"
        writer = ArrayWriter(folder / name, np.uint8)
        writer.append(np.packbits(self.deleted))
        deletes = DeletesEntry(name=name, documents=int(np.count_nonzero(self.deleted)), file=writer.close())
        sync_folder(folder)
        self.entry = self.entry.model_copy(update={"deletes": deletes})
        self._changed = False
