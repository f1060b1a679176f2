"""Sparse vectors on disk: a folder of plain arrays, written as a stream and read by memory mapping.

=============  ===========  ===================================================================
file           type         content
=============  ===========  ===================================================================
manifest.json  JSON         version, sizes, encoder fingerprint, checksums; written last
ids            UTF-8        the ids, one after the other
ids.offsets    int64        ``[rows + 1]``: id ``i`` is ``ids[offsets[i]:offsets[i + 1]]``, in bytes
indptr         int64        ``[rows + 1]``: row ``i`` is ``[indptr[i], indptr[i + 1])`` of the two below
units          int32        ``[nnz]``: vocabulary terms, ascending and distinct within a row
weights        float32      ``[nnz]``, finite and above 0
=============  ===========  ===================================================================

All numbers are little-endian. The folder appears under its name when it is complete, by a rename; what a
killed writer leaves is called ``.NAME.partial`` and is cleared by the next writer of the same name. A writer that
fails, at its start as well, removes it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from retrieval.index.arrays import ArrayFile, ArrayWriter, disk_errors, map_array, sync_folder, verify_file
from retrieval.index.lock import LOCK_FILE, WriterLock
from runtime.activations import SparseActivations
from runtime.errors import ConflictError, FormatError, InputError, NotFoundError

VERSION = 1
MANIFEST = "manifest.json"
FILES = {
    "ids": np.uint8,
    "ids.offsets": np.int64,
    "indptr": np.int64,
    "units": np.int32,
    "weights": np.float32,
}
BLOCK_ROWS = 1 << 16


class VectorManifest(BaseModel):
    """What manifest.json says; `checksum` is the SHA-256 of the rest of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str = "lexpert-vectors"
    version: int = VERSION
    num_rows: int
    num_units: int
    nnz: int
    encoder: str
    files: dict[str, ArrayFile]
    checksum: str = ""

    def own_checksum(self) -> str:
        rest = json.dumps(self.model_dump(exclude={"checksum"}), sort_keys=True)
        return hashlib.sha256(rest.encode()).hexdigest()


class VectorWriter:
    """Writes a folder of vectors batch by batch, in memory that does not grow with it; a context manager.

    Leaving the context completes the folder; leaving it by an exception leaves nothing.
    """

    def __init__(self, path: Path, num_units: int, encoder: str) -> None:
        """Start writing.

        Args:
            path: the folder to make.
            num_units: size of the encoder's vocabulary.
            encoder: its fingerprint.

        Raises:
            ConflictError: `path` exists, or another process is writing it.
            LexpertError: no space is left.
        """
        if path.exists():
            raise ConflictError(f"{path} exists; remove it or write to another folder")
        self.path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._num_units = num_units
        self._encoder = encoder
        self._num_rows = self._nnz = self._id_bytes = 0
        self._writers: dict[str, ArrayWriter] = {}
        found = self._partial.exists()
        try:
            with disk_errors(path):
                self._lock = WriterLock(self._partial)
        except ConflictError:
            raise
        except BaseException:
            if not found:  # else it may be another writer's
                shutil.rmtree(self._partial, ignore_errors=True)
            raise
        try:
            self._start()
        except BaseException:
            self._discard()
            raise

    def _start(self) -> None:
        with disk_errors(self.path):
            for left in self._partial.iterdir():
                if left.name != LOCK_FILE:
                    left.unlink()
            for name, dtype in FILES.items():
                self._writers[name] = ArrayWriter(self._partial / name, dtype)
            for name in ("ids.offsets", "indptr"):
                self._writers[name].append(np.zeros(1, np.int64))

    def _discard(self) -> None:
        for writer in self._writers.values():
            writer.abandon()
        shutil.rmtree(self._partial, ignore_errors=True)
        self._lock.release()

    def append(self, ids: Sequence[str], vectors: SparseActivations) -> None:
        """Append rows (NumPy arrays; units ascending and distinct, weights finite and above 0).

        Raises:
            InputError: ids and rows differ in number, or a row is not as it should be; names its id.
        """
        if len(ids) != vectors.num_rows:
            raise InputError(f"{len(ids)} ids were given for {vectors.num_rows} vectors; give one for each")
        indptr, units = np.asarray(vectors.indptr), np.asarray(vectors.units)
        weights = np.asarray(vectors.weights, np.float32)
        bad = _first_bad_row(indptr, units, weights, self._num_units)
        if bad is not None:
            raise InputError(
                f"the vector of {ids[bad]!r} must have ascending units below {self._num_units} and weights above 0"
            )
        encoded = [identifier.encode("utf-8", "surrogatepass") for identifier in ids]
        ends = self._id_bytes + np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        self._writers["ids"].append(np.frombuffer(b"".join(encoded), np.uint8))
        self._writers["ids.offsets"].append(ends)
        self._writers["indptr"].append(indptr[1:] + self._nnz)
        self._writers["units"].append(units)
        self._writers["weights"].append(weights)
        self._num_rows += len(ids)
        self._nnz += len(units)
        self._id_bytes += sum(map(len, encoded))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with disk_errors(self.path):
                    self._complete()
        finally:
            self._discard()

    def _complete(self) -> None:
        files = {name: writer.close() for name, writer in self._writers.items()}
        manifest = VectorManifest(
            num_rows=self._num_rows,
            num_units=self._num_units,
            nnz=self._nnz,
            encoder=self._encoder,
            files=files,
        )
        manifest = manifest.model_copy(update={"checksum": manifest.own_checksum()})
        with (self._partial / MANIFEST).open("w", encoding="utf-8") as file:
            file.write(manifest.model_dump_json(indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        (self._partial / LOCK_FILE).unlink()
        sync_folder(self._partial)
        try:
            self._partial.rename(self.path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            raise ConflictError(f"{self.path} has come into being meanwhile ({error.strerror})") from error
        sync_folder(self.path.parent)


class VectorIds(Sequence[str]):
    """The ids of a folder, decoded when asked for."""

    def __init__(self, data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self._data = data
        self._offsets = offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[place] for place in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        return self._data[start:end].tobytes().decode("utf-8", "surrogatepass")


class SparseVectors:
    """A folder of vectors, memory-mapped.

    Attributes:
        ids: the id of each row.
        activations: the rows, over the mapped files.
        encoder: fingerprint of the encoder that made them.
    """

    def __init__(self, path: Path) -> None:
        """Open a folder in time independent of its size.

        Raises:
            NotFoundError: there is no such folder of vectors.
            FormatError: its version is unknown, its manifest is damaged, or a file is missing or truncated.
        """
        self.path = path
        self.manifest = _read_manifest(path)
        arrays: dict[str, NDArray[Any]] = {}
        lengths = {"ids.offsets": self.manifest.num_rows + 1, "indptr": self.manifest.num_rows + 1}
        lengths |= {"units": self.manifest.nnz, "weights": self.manifest.nnz}
        for name, dtype in FILES.items():
            try:
                arrays[name] = map_array(path / name, dtype, self.manifest.files[name])
            except FileNotFoundError:
                raise FormatError(f"{path / name} is missing; encode the vectors again") from None
            if name in lengths and len(arrays[name]) != lengths[name]:
                raise FormatError(
                    f"{path / name} has not the length that its manifest implies; it is damaged"
                )
        self.ids = VectorIds(arrays["ids"], arrays["ids.offsets"])
        self.encoder = self.manifest.encoder
        try:
            self.activations = SparseActivations(
                arrays["indptr"], arrays["units"], arrays["weights"], self.manifest.num_units
            )
        except ValueError as error:
            raise FormatError(f"{path} is damaged: {error}") from None

    def __len__(self) -> int:
        return self.manifest.num_rows

    def batches(self, num_rows: int = 4096) -> Iterator[tuple[list[str], SparseActivations]]:
        """Yield ids and rows in order, so many at a time; the rows are views of the mapped files."""
        rows = self.activations
        for start in range(0, len(self), num_rows):
            end = min(start + num_rows, len(self))
            indptr = np.asarray(rows.indptr[start : end + 1])
            first, last = int(indptr[0]), int(indptr[-1])
            part = SparseActivations(
                indptr - first, rows.units[first:last], rows.weights[first:last], rows.num_units
            )
            yield self.ids[start:end], part

    def verify(self) -> None:
        """Read everything and compare it with the manifest; FormatError on any difference."""
        for name in FILES:
            verify_file(self.path / name, self.manifest.files[name])
        if (np.diff(self.activations.indptr) < 0).any():
            raise FormatError(f"{self.path / 'indptr'} decreases; the folder was not written by a lexpert")
        for ids, part in self.batches(BLOCK_ROWS):
            rows = (np.asarray(part.indptr), np.asarray(part.units), np.asarray(part.weights))
            bad = _first_bad_row(*rows, part.num_units)
            if bad is not None:
                raise FormatError(f"the vector of {ids[bad]!r} in {self.path} has wrong units or weights")


def _first_bad_row(
    indptr: NDArray[Any], units: NDArray[Any], weights: NDArray[Any], num_units: int
) -> int | None:
    """The first row with a unit out of range or order, or a weight that is not finite and above 0."""
    bad = (units < 0) | (units >= num_units) | ~((weights > 0) & np.isfinite(weights))
    starts = np.zeros(len(units) + 1, bool)
    starts[indptr[:-1]] = True
    bad[1:] |= (np.diff(units.astype(np.int64)) <= 0) & ~starts[1:-1]
    if not bad.any():
        return None
    return int(np.searchsorted(indptr, int(np.argmax(bad)), side="right")) - 1


def _read_manifest(path: Path) -> VectorManifest:
    file = path / MANIFEST
    if not file.is_file():
        raise NotFoundError(f"{path} is not a folder of vectors: it has no {MANIFEST}")
    try:
        value = json.loads(file.read_bytes())
        version = value["version"]
        if value["format"] != "lexpert-vectors":
            raise FormatError(f"{path} holds {value['format']!r}, not vectors")
        if version != VERSION:
            raise FormatError(
                f"{path} has version {version!r} of the vector format, but this lexpert reads {VERSION}; "
                "update lexpert or encode again"
            )
        manifest = VectorManifest.model_validate(value)
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError, ValidationError) as error:
        raise FormatError(f"{file} is damaged ({type(error).__name__}); encode the vectors again") from None
    if manifest.checksum != manifest.own_checksum() or set(manifest.files) != set(FILES):
        raise FormatError(f"{file} is damaged: it has not the checksum it states; encode the vectors again")
    return manifest
