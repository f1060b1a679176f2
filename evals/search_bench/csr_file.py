"""Sparse vectors in one file, the binary CSR of the big-ann sparse track, streamed out and mapped in.

int64 rows, cols, nnz; int64 ``indptr[rows + 1]``; int32 ``indices[nnz]``; float32 ``values[nnz]``; little-endian.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from runtime.activations import SparseActivations
from runtime.errors import FormatError, NotFoundError

HEADER = 3
"""Numbers in front: rows, columns and non-zeros."""


class CsrFileWriter:
    """Writes a file chunk by chunk, in memory that grows by 8 bytes a row; a context manager.

    The file appears under its name when it is complete.
    """

    def __init__(self, path: Path, num_units: int) -> None:
        self.path = path
        self.num_units = num_units
        self._ends = [np.zeros(1, np.int64)]
        self._parts = {name: path.with_name(f".{path.name}.{name}.partial") for name in ("units", "weights")}
        self._files = {name: part.open("wb") for name, part in self._parts.items()}

    def append(self, vectors: SparseActivations) -> None:
        """Append rows (NumPy arrays)."""
        self._ends.append(vectors.indptr[1:] + self._ends[-1][-1])
        self._files["units"].write(np.ascontiguousarray(vectors.units, "<i4").data)
        self._files["weights"].write(np.ascontiguousarray(vectors.weights, "<f4").data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        whole = self.path.with_name(f".{self.path.name}.partial")
        try:
            for file in self._files.values():
                file.close()
            if kind is None:
                self._join(whole)
        finally:
            for part in (*self._parts.values(), whole):
                part.unlink(missing_ok=True)

    def _join(self, whole: Path) -> None:
        indptr = np.concatenate(self._ends)
        with whole.open("wb") as out:
            out.write(np.array([len(indptr) - 1, self.num_units, indptr[-1]], "<i8").data)
            out.write(indptr.astype("<i8", copy=False).data)
            for part in self._parts.values():
                with part.open("rb") as file:
                    shutil.copyfileobj(file, out, 1 << 22)
            out.flush()
            os.fsync(out.fileno())
        whole.replace(self.path)


def write_csr_file(path: Path, vectors: SparseActivations) -> None:
    """Write all rows at once."""
    with CsrFileWriter(path, vectors.num_units) as writer:
        writer.append(vectors)


def map_csr_file(path: Path) -> SparseActivations:
    """The rows of a file, mapped.

    Raises:
        NotFoundError: there is no such file.
        FormatError: its length is not what its header says.
    """
    if not path.is_file():
        raise NotFoundError(f"{path} is missing; give a CSR file of sparse vectors")
    size = path.stat().st_size
    rows, units, nnz = np.fromfile(path, "<i8", HEADER).tolist() if size >= 8 * HEADER else (-1, 0, 0)
    if rows < 0 or nnz < 0 or units < 0 or size != 8 * (HEADER + rows + 1) + 8 * nnz:
        raise FormatError(f"{path} is not a binary CSR file, or it was cut short")
    ends = 8 * (HEADER + rows + 1)
    return SparseActivations(
        np.memmap(path, "<i8", "r", 8 * HEADER, (rows + 1,)),
        _mapped(path, "<i4", ends, nnz),
        _mapped(path, "<f4", ends + 4 * nnz, nnz),
        units,
    )


def check_csr_file(path: Path) -> None:
    """Read all of a file of the caller once, a bounded number of entries at a time.

    Raises:
        FormatError: offsets that do not ascend from 0 to the number of non-zeros, or more columns than an index takes.
        InputError: a column out of range, or a weight that is negative or not finite; says in which row.
    """
    from retrieval.interop.bigann import BigAnnReader

    with BigAnnReader(path) as reader:
        for _ in reader.batches():
            pass


def _mapped(path: Path, dtype: str, offset: int, length: int) -> np.ndarray:
    # A map of nothing is an error to the system.
    return np.memmap(path, dtype, "r", offset, (length,)) if length else np.zeros(0, dtype)
