"""Transposing on disk."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.interop import external_transpose
from retrieval.interop.external_transpose import ExternalTranspose, ends_by_count

COLUMNS = st.lists(st.dictionaries(st.integers(0, 9), st.integers(0, 2**31 - 1), max_size=6), max_size=8)


@given(COLUMNS, st.integers(1, 12), st.integers(1, 12))
def test_rows_come_back_in_order_whatever_the_sizes(
    columns: list[dict[int, int]], buffered: int, file_entries: int
) -> None:
    expected: list[list[tuple[int, int]]] = [[] for _ in range(10)]
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patched:
        patched.setattr(external_transpose, "BUFFERED", buffered)
        counts = np.bincount([row for column in columns for row in column], minlength=10)
        transposed = ExternalTranspose(Path(scratch), ends_by_count(counts, file_entries))
        for unit, column in enumerate(columns):
            rows = np.array(list(column), np.int64)
            transposed.add(rows, np.full(len(rows), unit), np.array(list(column.values()), np.int64))
            for row, value in column.items():
                expected[row].append((unit, value))
        parts = list(transposed.parts(len(columns)))
        assert list(Path(scratch).iterdir()) == []
    found = [
        list(zip(units.tolist(), values.tolist(), strict=True)) for part in parts for units, values in part
    ]
    assert found == expected


@given(st.lists(st.integers(0, 9), max_size=20), st.integers(1, 12))
def test_files_are_full_but_no_fuller_than_one_row_makes_them(counts: list[int], limit: int) -> None:
    ends = ends_by_count(np.array(counts, np.int64), limit).tolist()
    assert ends == sorted(set(ends))
    assert ends[-1] == len(counts)
    for start, end in zip([0, *ends], ends, strict=False):
        assert sum(counts[start:end]) <= limit or end - start == 1
        assert end == len(counts) or sum(counts[start : end + 1]) > limit
