"""The binary CSR file: the bytes of the format, whole or not at all."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from evals.search_bench.csr_file import CsrFileWriter, map_csr_file, write_csr_file
from runtime.activations import SparseActivations
from runtime.errors import FormatError, NotFoundError


def two_rows() -> SparseActivations:
    return SparseActivations(
        np.array([0, 2, 3]), np.array([0, 4, 4], np.int32), np.array([3, 1, 5], np.float32), 6
    )


def test_the_file_has_the_bytes_of_the_format(tmp_path: Path) -> None:
    path = tmp_path / "vectors.csr"
    write_csr_file(path, two_rows())
    assert path.read_bytes() == struct.pack("<3q3q3i3f", 2, 6, 3, 0, 2, 3, 0, 4, 4, 3, 1, 5)


def test_what_was_streamed_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "vectors.csr"
    with CsrFileWriter(path, 6) as writer:
        writer.append(two_rows()[:1])
        writer.append(SparseActivations.empty(2, 6))
        writer.append(two_rows()[1:])
    found = map_csr_file(path)
    assert found.indptr.tolist() == [0, 2, 2, 2, 3]
    assert found.units.tolist() == [0, 4, 4]
    assert found.weights.tolist() == [3, 1, 5]
    assert found.num_units == 6


def test_a_file_of_nothing_is_read_back(tmp_path: Path) -> None:
    write_csr_file(tmp_path / "empty.csr", SparseActivations.empty(0, 6))
    assert map_csr_file(tmp_path / "empty.csr").num_rows == 0


def test_a_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AttributeError), CsrFileWriter(tmp_path / "vectors.csr", 6) as writer:
        writer.append(None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vectors.csr"
    write_csr_file(path, two_rows())
    whole = path.read_bytes()
    for length in (0, 10, 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError, match="cut short"):
            map_csr_file(path)
    with pytest.raises(NotFoundError, match="is missing"):
        map_csr_file(tmp_path / "none.csr")
