"""The documents of an index that are not deleted, as rows: what every export reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.documents import document_text
from retrieval.index.segment import Segment
from retrieval.index.sparse_index import SparseIndex
from runtime.activations import SparseActivations

BATCH_ROWS = 1 << 14


class LiveRows(NamedTuple):
    """Consecutive live documents of one segment.

    Attributes:
        rows: int64, their rows in the segment.
        vectors: units ascending; weights are float32 impacts.
    """

    segment: Segment
    rows: NDArray[np.int64]
    vectors: SparseActivations

    @property
    def ids(self) -> list[str]:
        return self.segment.ids.take(self.rows)

    @property
    def texts(self) -> list[str]:
        """What is stored of title and text; empty where nothing is."""
        return [document_text(self.segment.document(row)) for row in self.rows.tolist()]


def live_rows(index: SparseIndex, num_rows: int = BATCH_ROWS) -> Iterator[LiveRows]:
    """Yield the live documents in the order of the index, at most `num_rows` at a time."""
    for segment in index.segments:
        end = 0
        for window in range(segment.num_windows):
            vectors = segment.window_rows(window, index.manifest.num_units)
            first, end = end, end + vectors.num_rows
            live = np.flatnonzero(~segment.deleted[first:end])
            if len(live) < vectors.num_rows:
                vectors = vectors[live]
            for start in range(0, len(live), num_rows):
                stop = min(start + num_rows, len(live))
                yield LiveRows(segment, live[start:stop] + first, vectors[start:stop])
