"""The binary CSR file: the bytes of the format, whole or not at all."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from evals.search_bench.csr_file import CsrFileWriter, check_csr_file, map_csr_file, write_csr_file
from runtime.activations import SparseActivations
from runtime.errors import FormatError, InputError, NotFoundError


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


@pytest.mark.parametrize(
    ("place", "value", "error", "reason"),
    [
        (24, struct.pack("<q", 1), FormatError, "offsets do not ascend"),
        (32, struct.pack("<q", 9), FormatError, "offsets do not ascend"),
        (32, struct.pack("<q", -1), FormatError, "offsets do not ascend"),
        (40, struct.pack("<q", 2), FormatError, "offsets do not ascend"),
        (48, struct.pack("<i", -1), InputError, "row 0: column -1"),
        (56, struct.pack("<i", 6), InputError, "row 1: column 6"),
        (60, struct.pack("<f", -1), InputError, "row 0: column 0 with weight -1"),
        (64, struct.pack("<f", float("nan")), InputError, "weight nan"),
        (68, struct.pack("<f", float("inf")), InputError, "row 1: column 4 with weight inf"),
        (8, struct.pack("<q", 1 << 40), FormatError, "columns"),
    ],
)
def test_impossible_offsets_columns_and_weights_are_refused(
    place: int, value: bytes, error: type[Exception], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "vectors.csr"
    write_csr_file(path, two_rows())
    check_csr_file(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:place] + value + whole[place + len(value) :])
    with pytest.raises(error, match=reason):
        check_csr_file(path)
