"""Documents that were encoded but not yet written: the writer's bounded memory."""

from __future__ import annotations

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


class DocumentBuffer:
    """Buffered documents; adding an id again replaces the earlier document."""

    def __init__(self, fields: Mapping[str, FieldKind], store: Sequence[str]) -> None:
        self._fields = fields
        self._store = store
        self._ids: list[str] = []
        self._stored: list[bytes] = []
        self._field_values: dict[str, list[Any]] = {name: [] for name in fields}
        self._activations: list[SparseActivations] = []
        self._lengths: list[NDArray[np.int64]] = []
        self._row_of: dict[str, int] = {}
        self.bytes = 0

    def __len__(self) -> int:
        """Documents that are not replaced or discarded."""
        return len(self._row_of)

    def add(
        self,
        documents: Sequence[Document],
        activations: SparseActivations,
        lengths: NDArray[np.int64] | None,
    ) -> int:
        """Append encoded documents and return how many replaced a buffered one."""
        # Everything that can be refused is checked before anything is taken, so that a caller who goes on after
        # a refused batch still has what he had.
        stored = [self._stored_bytes(document) for document in documents] if self._store else []
        values = {
            name: [_checked_value(document, name, kind) for document in documents]
            for name, kind in self._fields.items()
        }
        replaced = 0
        for document in documents:
            identifier = document["_id"]
            replaced += identifier in self._row_of
            self._row_of[identifier] = len(self._ids)
            self._ids.append(identifier)
            self.bytes += OBJECT_BYTES + len(identifier)
        self._stored += stored
        for name, column in self._field_values.items():
            column += values[name]
            self.bytes += sum(
                FIELD_BYTES + (len(value) if isinstance(value, str) else 0) for value in values[name]
            )
        self._activations.append(activations)
        if lengths is not None:
            self._lengths.append(lengths)
        self.bytes += activations.units.nbytes + activations.weights.nbytes + sum(map(len, stored))
        return replaced

    def _stored_bytes(self, document: Document) -> bytes:
        try:
            encoded = orjson.dumps({key: document[key] for key in self._store if document.get(key)})
        except TypeError:
            raise InputError(
                f"document {document['_id']!r}: its title or text holds half of a surrogate pair, "
                "which is no valid Unicode; remove it"
            ) from None
        # A copy: the object that orjson returns keeps the kilobytes that it was written into.
        return bytes(memoryview(encoded))

    def discard(self, identifier: str) -> bool:
        """Take a document out again; whether it was there."""
        return self._row_of.pop(identifier, None) is not None

    @property
    def ids(self) -> list[str]:
        """Ids of the documents that are not replaced or discarded."""
        return list(self._row_of)

    def runs(self, num_units: int) -> Iterator[DocumentRun]:
        """The documents as runs of one window each, in the order they came; the buffer can be used once."""
        keep = np.sort(np.fromiter(self._row_of.values(), np.int64, len(self._row_of)))
        activations = _concatenate(self._activations, num_units)
        self._activations.clear()
        lengths = np.concatenate(self._lengths) if self._lengths else None
        for start in range(0, len(keep), WINDOW_DOCUMENTS):
            rows = keep[start : start + WINDOW_DOCUMENTS]
            contiguous = int(rows[-1]) - int(rows[0]) + 1 == len(rows)
            yield DocumentRun(
                ids=[self._ids[row] for row in rows],
                activations=activations[int(rows[0]) : int(rows[-1]) + 1]
                if contiguous
                else activations[rows],
                stored=self._stored_run(rows) if self._store else None,
                field_values={
                    name: [values[row] for row in rows] for name, values in self._field_values.items()
                },
                lengths=lengths[rows] if lengths is not None else None,
            )

    def _stored_run(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        stored = [self._stored[row] for row in rows]
        offsets = np.zeros(len(stored) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, stored), np.int64, len(stored)), out=offsets[1:])
        return np.frombuffer(b"".join(stored), np.uint8), offsets


def _checked_value(document: Document, name: str, kind: FieldKind) -> Any:
    value = document.get(name)
    check_value(name, kind, value, document["_id"])
    return value


def _concatenate(batches: Sequence[SparseActivations], num_units: int) -> SparseActivations:
    # The vocabulary may have grown between batches; all are as wide as the last.
    return SparseActivations.concat(
        [SparseActivations(batch.indptr, batch.units, batch.weights, num_units) for batch in batches]
    )
