"""The binary CSR file of the big-ann benchmarks' sparse track: float32 weights, exactly; no ids and no terms.

=========  =========================  ==================================================
part       type                       content
=========  =========================  ==================================================
sizes      int64 ``[3]``              rows, columns, non-zeros
`indptr`   int64 ``[rows + 1]``       row ``i`` is ``[indptr[i], indptr[i + 1])`` of the two below
`indices`  int32 ``[non-zeros]``      columns
`values`   float32 ``[non-zeros]``
=========  =========================  ==================================================

All little-endian, without padding. Ids lie in a file beside it, ``NAME.ids``, one a line; where there is none, they
are the numbers of the rows, from 0.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from retrieval.index.sparse_index import SparseIndex
from retrieval.interop.exported import Exported
from retrieval.interop.live_rows import live_rows
from retrieval.interop.whole_file import check_free, whole_file
from retrieval.text_lines import check_is_file, read_lines
from runtime.activations import SparseActivations
from runtime.errors import FormatError, InputError, UsageError
from runtime.progress import Advance

SIZES_BYTES = 24
MOST_UNITS = 1 << 24
"""More columns than any vocabulary has; the writer needs memory for each."""
BATCH_ROWS = 1 << 12
BATCH_ENTRIES = 1 << 21


def ids_beside(path: Path) -> Path:
    """The file of the ids of a CSR file."""
    return path.with_name(f"{path.name}.ids")


def write_bigann(index: SparseIndex, out: Path, advance: Advance | None = None) -> Exported:
    """Write the live documents of an index as a CSR file, and their ids beside it.

    Raises:
        ConflictError: one of the two files exists.
        InputError: an id that has a line break in it.
        UsageError: `out` ends in .gz; the parts are not written one after the other.
    """
    if out.suffix == ".gz":
        raise UsageError(
            f"{out} cannot be compressed while it is written; write it without .gz, then run gzip"
        )
    check_free(out)
    rows, non_zeros = index.num_documents, 0
    empty = 0
    with ExitStack() as leaving:
        # The ids are in place before the file that they belong to is.
        partial = leaving.enter_context(whole_file(out))
        ids = leaving.enter_context(whole_file(ids_beside(out)))
        with partial.open("wb") as indptr, ids.open("w", encoding="utf-8", newline="\n") as lines:
            indptr.write(np.array([rows, index.manifest.num_units, 0, 0], "<i8").data)
            for batch in live_rows(index):
                ends = batch.vectors.indptr[1:] + non_zeros
                indptr.write(ends.astype("<i8").data)
                empty += int(np.count_nonzero(np.diff(batch.vectors.indptr) == 0))
                non_zeros += batch.vectors.nnz
                lines.writelines(f"{_one_line(identifier)}\n" for identifier in batch.ids)
        first_index = SIZES_BYTES + 8 * (rows + 1)
        with partial.open("r+b") as indices, partial.open("r+b") as values:
            indices.seek(16)
            indices.write(np.array([non_zeros], "<i8").data)
            indices.seek(first_index)
            values.seek(first_index + 4 * non_zeros)
            for batch in live_rows(index):
                indices.write(batch.vectors.units.astype("<i4").data)
                values.write(batch.vectors.weights.astype("<f4").data)
                if advance:
                    advance(len(batch.rows))
    return Exported(rows, non_zeros, 0, empty, None)


def _one_line(identifier: str) -> str:
    if identifier.splitlines() != [identifier] or identifier.strip("\ufeff \t") != identifier:
        raise InputError(
            f"the id {identifier!r:.60} cannot stand in a file with one id a line: it has a line break, "
            "or white space at an end"
        )
    try:
        identifier.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"the id {identifier!r:.60} holds half of a surrogate pair, which a file cannot"
        ) from None
    return identifier


class BigAnnBatch(NamedTuple):
    """Some rows: ids and vectors as they are in the file."""

    ids: list[str]
    vectors: SparseActivations


class BigAnnReader:
    """A CSR file, compressed or not, open for reading; `indptr` is held in memory. A context manager.

    Attributes:
        num_rows: documents.
        num_units: columns.
        nnz: non-zeros.
    """

    def __init__(self, path: Path, ids: Path | None = None) -> None:
        """Open a file.

        Args:
            ids: one id a line; default: the file beside it, where there is one, else the numbers of the rows.

        Raises:
            NotFoundError: no such file.
            FormatError: its size is not what its first numbers say, or its offsets are impossible.
        """
        check_is_file(path, "a binary CSR file")
        if ids is not None:
            check_is_file(ids, "a file with one id a line")
        elif ids_beside(path).is_file():
            ids = ids_beside(path)
        self.path = path
        self.ids_path = ids
        with ExitStack() as leaving:
            # Two places are read at once: one file object for each.
            self._file, self._values = (leaving.enter_context(_opened(path)) for _ in range(2))
            self.num_rows, self.num_units, self.nnz = self._sizes()
            self.indptr = self._array(self._file, "<i8", self.num_rows + 1)
            if self.indptr[0] != 0 or self.indptr[-1] != self.nnz or (np.diff(self.indptr) < 0).any():
                raise self._wrong(f"its offsets do not ascend from 0 to its {self.nnz:,} non-zeros")
            try:
                self._values.seek(SIZES_BYTES + 8 * (self.num_rows + 1) + 4 * self.nnz)
            except (gzip.BadGzipFile, EOFError, zlib.error) as damage:
                raise self._wrong(f"it is not a whole gzip file ({damage})") from None
            self._leaving = leaving.pop_all()

    def _sizes(self) -> tuple[int, int, int]:
        rows, columns, non_zeros = self._array(self._file, "<i8", 3).tolist()
        expected = SIZES_BYTES + 8 * (rows + 1) + 8 * non_zeros
        actual = self.path.stat().st_size
        # Of a compressed file the size is not known; a thousandfold is more than gzip can do.
        fits = expected == actual if not _is_compressed(self.path) else expected <= 1100 * actual
        if min(rows, columns, non_zeros) < 0 or not fits:
            raise FormatError(
                f"{self.path} is not a binary CSR file, or is cut short: its first numbers speak of {rows:,} rows, "
                f"{columns:,} columns and {non_zeros:,} non-zeros, but it has {actual:,} bytes"
            )
        if columns > MOST_UNITS:
            raise FormatError(
                f"{self.path} speaks of {columns:,} columns; an index takes up to {MOST_UNITS:,} units"
            )
        return rows, columns, non_zeros

    def __enter__(self) -> BigAnnReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.close()

    def batches(self) -> Iterator[BigAnnBatch]:
        """Yield rows in order, a bounded number of entries at a time; can be read once.

        Raises:
            FormatError: a compressed file ends early.
            InputError: a column out of range, a weight that is negative or not finite, or not one id a row; says
                where.
        """
        names = self._names()
        start = 0
        while start < self.num_rows:
            limit = int(np.searchsorted(self.indptr, self.indptr[start] + BATCH_ENTRIES, side="right")) - 1
            end = min(max(limit, start + 1), start + BATCH_ROWS, self.num_rows)
            ids = list(islice(names, end - start))
            if len(ids) < end - start:
                raise InputError(f"{self.ids_path} has {start + len(ids):,} ids for {self.num_rows:,} rows")
            yield BigAnnBatch(ids, self._rows(start, end))
            start = end
        if self._read(self._values, 1):  # the end of a compressed file is where its checksum is compared
            raise self._wrong("it goes on after its last weight")
        if self.ids_path is not None and next(names, None) is not None:
            raise InputError(f"{self.ids_path} has more ids than the {self.num_rows:,} rows of {self.path}")

    def _names(self) -> Iterator[str]:
        if self.ids_path is None:
            return (str(row) for row in range(self.num_rows))
        return (line for _, line in read_lines(self.ids_path, "a file with one id a line"))

    def _rows(self, start: int, end: int) -> SparseActivations:
        indptr = self.indptr[start : end + 1] - self.indptr[start]
        units = self._array(self._file, "<i4", int(indptr[-1]))
        weights = self._array(self._values, "<f4", int(indptr[-1]))
        bad = (units < 0) | (units >= self.num_units) | ~np.isfinite(weights) | (weights < 0)
        if bad.any():
            place = int(np.argmax(bad))
            row = start + int(np.searchsorted(indptr, place, side="right")) - 1
            raise InputError(
                f"{self.path}, row {row:,}: column {units[place]} with weight {weights[place]:g}, but columns run "
                f"from 0 to {self.num_units - 1:,} and weights must be finite and 0 or more"
            )
        return SparseActivations(indptr, units, weights, self.num_units)

    def _array(self, file: IO[bytes], dtype: str, number: int) -> NDArray[Any]:
        wanted = np.dtype(dtype).itemsize * number
        read = self._read(file, wanted)
        if len(read) < wanted:
            raise self._wrong("it is cut short")
        return np.frombuffer(read, dtype)

    def _read(self, file: IO[bytes], number: int) -> bytes:
        try:
            return file.read(number)
        except (gzip.BadGzipFile, EOFError, zlib.error) as damage:
            raise self._wrong(f"it is not a whole gzip file ({damage})") from None

    def _wrong(self, what: str) -> FormatError:
        return FormatError(f"{self.path} is damaged: {what}; fetch or export it again")


def looks_like_bigann(path: Path) -> bool:
    """Whether a file's size is the one that its first three numbers imply; False for a compressed one."""
    with path.open("rb") as file:
        start = file.read(SIZES_BYTES)
    if len(start) < SIZES_BYTES:
        return False
    rows, columns, non_zeros = np.frombuffer(start, "<i8").tolist()
    sizes = min(rows, columns, non_zeros) >= 0
    return sizes and path.stat().st_size == SIZES_BYTES + 8 * (rows + 1) + 8 * non_zeros


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _opened(path: Path) -> IO[bytes]:
    opened: Any = gzip.open(path, "rb") if _is_compressed(path) else path.open("rb")  # noqa: SIM115
    return cast(IO[bytes], opened)
