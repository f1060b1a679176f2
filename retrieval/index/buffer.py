"""Documents that were encoded but not yet written: the writer's bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from retrieval.documents import Document
from retrieval.index.fields import check_value
from retrieval.index.manifest import FieldKind
from retrieval.index.segment_writer import DocumentRun
from retrieval.index.window_postings import WINDOW_DOCUMENTS
from runtime.activations import SparseActivations
from runtime.errors import InputError

OBJECT_BYTES = 320
"""Python's own cost of a buffered document: its id in a list and a table, and its stored bytes."""


FIELD_BYTES = 40
"""The same of a field's value."""

NOTHING_STORED = b"{}"
"""What is stored of a document without title and text."""


class DocumentBuffer:
    """Buffered documents; adding an id again replaces the earlier document."""

    def __init__(self, fields: Mapping[str, FieldKind], store: Sequence[str]) -> None:
        self._fields = fields
        self._store = store
        self._ids: list[str] = []
        self._stored: list[bytes] = []
        self._field_values: dict[str, list[Any]] = {name: [] for name in fields}
        self._batches: deque[SparseActivations] = deque()
        self._lengths: list[NDArray[np.int64]] = []
        self._row_of: dict[str, int] = {}
        self._first_row = 0
        """Row of the first of the batches."""
        self.bytes = 0

    def __len__(self) -> int:
        """Documents that are not replaced or discarded."""
        return len(self._row_of)

    def add(
        self,
        ids: Sequence[str],
        documents: Sequence[Document] | None,
        activations: SparseActivations,
        lengths: NDArray[np.int64] | None = None,
    ) -> int:
        """Append encoded documents and return how many replaced a buffered one.

        Args:
            ids: one a document.
            documents: what to store and filter by, one a row; None for nothing.
            activations: one row a document. Kept, not copied: the caller must not change it any more.
            lengths: where `activations` are counts that wait for statistics.
        """
        # Everything that can be refused is checked before anything is taken, so that a caller who goes on after
        # a refused batch still has what he had.
        if documents is None:
            stored = [NOTHING_STORED] * len(ids) if self._store else []
            values: dict[str, list[Any]] = {name: [None] * len(ids) for name in self._fields}
        else:
            pairs = list(zip(ids, documents, strict=True))
            stored = [self._stored_bytes(*pair) for pair in pairs] if self._store else []
            values = {
                name: [_checked_value(identifier, document, name, kind) for identifier, document in pairs]
                for name, kind in self._fields.items()
            }
        before, first = len(self._row_of), len(self._ids)
        self._row_of.update(zip(ids, range(first, first + len(ids)), strict=True))
        self._ids += ids
        self.bytes += OBJECT_BYTES * len(ids) + sum(map(len, ids))
        self._stored += stored
        for name, column in self._field_values.items():
            column += values[name]
            self.bytes += sum(
                FIELD_BYTES + (len(value) if isinstance(value, str) else 0) for value in values[name]
            )
        self._batches.append(activations)
        if lengths is not None:
            self._lengths.append(lengths)
        self.bytes += activations.units.nbytes + activations.weights.nbytes + sum(map(len, stored))
        return len(ids) - (len(self._row_of) - before)

    def _stored_bytes(self, identifier: str, document: Document) -> bytes:
        try:
            encoded = orjson.dumps({key: document[key] for key in self._store if document.get(key)})
        except TypeError:
            raise InputError(
                f"document {identifier!r}: its title or text holds half of a surrogate pair, "
                "which is no valid Unicode; remove it"
            ) from None
        # A copy: the object that orjson returns keeps the kilobytes that it was written into.
        return bytes(memoryview(encoded))

    def discard(self, identifier: str) -> bool:
        """Take a document out again; whether it was there."""
        return self._row_of.pop(identifier, None) is not None

    def runs(self, num_units: int) -> Iterator[DocumentRun]:
        """The documents as runs of one window each, in the order they came; the buffer can be used once."""
        keep = np.sort(np.fromiter(self._row_of.values(), np.int64, len(self._row_of)))
        lengths = np.concatenate(self._lengths) if self._lengths else None
        for start in range(0, len(keep), WINDOW_DOCUMENTS):
            rows = keep[start : start + WINDOW_DOCUMENTS]
            yield DocumentRun(
                ids=[self._ids[row] for row in rows],
                activations=self._take_rows(rows, num_units),
                stored=self._stored_run(rows) if self._store else None,
                field_values={
                    name: [values[row] for row in rows] for name, values in self._field_values.items()
                },
                lengths=lengths[rows] if lengths is not None else None,
            )

    def _take_rows(self, rows: NDArray[np.int64], num_units: int) -> SparseActivations:
        """The vectors of some rows (ascending), and the end of those batches that lie before the last of them."""
        parts = []
        while len(rows):
            batch = self._batches[0]
            here = int(np.searchsorted(rows, self._first_row + batch.num_rows))
            if here:
                local = rows[:here] - self._first_row
                is_range = int(local[-1]) - int(local[0]) + 1 == here
                parts.append(batch[int(local[0]) : int(local[-1]) + 1] if is_range else batch[local])
            if here < len(rows):
                self._first_row += batch.num_rows
                self._batches.popleft()
            rows = rows[here:]
        # The vocabulary may have grown between batches; all are as wide as the last.
        taken = SparseActivations.concat(parts)
        return SparseActivations(taken.indptr, taken.units, taken.weights, num_units)

    def _stored_run(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        stored = [self._stored[row] for row in rows]
        offsets = np.zeros(len(stored) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, stored), np.int64, len(stored)), out=offsets[1:])
        return np.frombuffer(b"".join(stored), np.uint8), offsets


def _checked_value(identifier: str, document: Document, name: str, kind: FieldKind) -> Any:
    value = document.get(name)
    check_value(name, kind, value, identifier)
    return value
