"""Rows turned into columns, or columns into rows, on disk: for more postings than memory holds.

Entries come in the order of one side and leave in the order of the other. They are dealt out to files by ranges of
the other side, each small enough to be sorted in memory; so everything is written once and read once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.index.arrays import disk_errors
from runtime.activations import SparseActivations

ENTRY = np.dtype([("row", "<u4"), ("unit", "<i4"), ("value", "<i4")])
BUFFERED = 1 << 21
"""Entries held before they are dealt out: 24 MB, and a few copies on the way."""
FILE_ENTRIES = 1 << 22
"""Entries that a file should hold: 48 MB, and a few copies while it is sorted. One row may need more."""


class ExternalTranspose:
    """Collects entries ``(row, unit, value)`` in any order and gives them back by rows."""

    def __init__(self, folder: Path, ends: NDArray[np.int64]) -> None:
        """Start empty.

        Args:
            folder: an empty one, for the files.
            ends: int64 ``[files]``, ascending: the row after the last one of each file; see `ends_by_count`.
        """
        self._folder = folder
        self._ends = ends
        self._rows: list[NDArray[np.int64]] = []
        self._units: list[NDArray[np.int64]] = []
        self._values: list[NDArray[np.int64]] = []
        self._buffered = 0

    def add(self, rows: NDArray[np.int64], units: NDArray[np.int64], values: NDArray[np.int64]) -> None:
        """Take entries: rows below the last end, units and values below 2³¹."""
        if not len(rows):
            return
        self._rows.append(rows)
        self._units.append(units)
        self._values.append(values)
        self._buffered += len(rows)
        if self._buffered >= BUFFERED:
            self._deal_out()

    def _deal_out(self) -> None:
        rows = np.concatenate(self._rows)
        file_of = np.searchsorted(self._ends, rows, side="right")
        order = np.argsort(file_of, kind="stable")
        entries = np.empty(len(rows), ENTRY)
        entries["row"] = rows[order]
        entries["unit"] = np.concatenate(self._units)[order]
        entries["value"] = np.concatenate(self._values)[order]
        files, starts = np.unique(file_of[order], return_index=True)
        for number, start, stop in zip(
            files.tolist(), starts.tolist(), [*starts[1:].tolist(), len(rows)], strict=True
        ):
            path = self._path(number)
            with disk_errors(path), path.open("ab") as file:
                file.write(entries[start:stop].data)
        self._rows, self._units, self._values, self._buffered = [], [], [], 0

    def parts(self, num_units: int) -> Iterator[SparseActivations]:
        """Yield the rows of each file, in order, all of them together once; a row's entries in the order they came.

        Units and weights (the values) are int32. Can be read once.
        """
        if self._rows:
            self._deal_out()
        start = 0
        for number, end in enumerate(self._ends.tolist()):
            path = self._path(number)
            entries = np.fromfile(path, ENTRY) if path.exists() else np.empty(0, ENTRY)
            path.unlink(missing_ok=True)
            rows = entries["row"].astype(np.int64) - start
            order = np.argsort(rows, kind="stable")
            indptr = np.zeros(end - start + 1, np.int64)
            np.cumsum(np.bincount(rows, minlength=end - start), out=indptr[1:])
            yield SparseActivations(indptr, entries["unit"][order], entries["value"][order], num_units)
            start = end

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}"


def ends_by_count(counts: NDArray[np.int64], limit: int = FILE_ENTRIES) -> NDArray[np.int64]:
    """Where to end each file so that it holds at most `limit` entries, or one row; `counts` are those of each row."""
    total = np.cumsum(counts)
    ends: list[int] = []
    while not ends or ends[-1] < len(counts):
        first = ends[-1] if ends else 0
        before = int(total[first - 1]) if first else 0
        ends.append(max(first + 1, int(np.searchsorted(total, before + limit, side="right"))))
    return np.minimum(np.array(ends, np.int64), len(counts))
