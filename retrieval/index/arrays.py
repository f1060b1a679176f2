"""Folders of plain little-endian arrays: written append-only with checksums, read by memory mapping."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydantic import BaseModel, ConfigDict

from runtime.errors import FormatError, LexpertError


class ArrayFile(BaseModel):
    """What a manifest says of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int
    sha256: str


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk (or quota, or file-size limit) below `path` into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise LexpertError(
                f"no space left to write {path} ({os.strerror(error.errno)}); "
                "what was committed before is intact: free some space and run the same command again"
            ) from error
        raise


class ArrayWriter:
    """Appends to one array file, with its checksum computed on the way."""

    def __init__(self, path: Path, dtype: DTypeLike) -> None:
        self.path = path
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._sha256 = hashlib.sha256()
        self._bytes = 0
        self._file: BinaryIO = path.open("wb", buffering=0)

    def append(self, values: NDArray[Any]) -> None:
        view = np.ascontiguousarray(values, self.dtype).reshape(-1).view(np.uint8).data
        self._sha256.update(view)
        self._bytes += len(view)
        with disk_errors(self.path):
            while view:
                view = view[self._file.write(view) or 0 :]

    def close(self) -> ArrayFile:
        """Make the file durable and return what the manifest says of it."""
        with disk_errors(self.path):
            os.fsync(self._file.fileno())
        self._file.close()
        return ArrayFile(bytes=self._bytes, sha256=self._sha256.hexdigest())

    def abandon(self) -> None:
        self._file.close()


class ArrayFolderWriter:
    """Writes a folder of arrays; leaving the context by an exception leaves the folder for collection."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writers: dict[str, ArrayWriter] = {}
        with disk_errors(folder):
            folder.mkdir(parents=True)

    def array(self, name: str, dtype: DTypeLike) -> ArrayWriter:
        """The writer of the array `name`, made on first use."""
        if name not in self._writers:
            self._writers[name] = ArrayWriter(self.folder / name, dtype)
        return self._writers[name]

    def close(self) -> dict[str, ArrayFile]:
        """Close all arrays, make files and folder durable, and return the files' descriptions."""
        files = {name: writer.close() for name, writer in sorted(self._writers.items())}
        sync_folder(self.folder)
        return files

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers.values():
            writer.abandon()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def map_array(path: Path, dtype: DTypeLike, expected: ArrayFile) -> NDArray[Any]:
    """Map a file as a read-only array, in time independent of its size.

    Raises:
        FormatError: the file is shorter or longer than its manifest says.
        FileNotFoundError: it is not there (a reader may have to take a newer manifest).
    """
    dtype = np.dtype(dtype).newbyteorder("<")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size != expected.bytes:
            raise FormatError(
                f"{path} has {size:,} bytes, but its manifest says {expected.bytes:,}; "
                "the file is damaged: restore it from a copy or build the index again"
            )
        if size == 0:
            return np.empty(0, dtype)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype)


def verify_file(path: Path, expected: ArrayFile) -> None:
    """Read a whole file and compare it with its manifest.

    Raises:
        FormatError: it is missing, truncated, or any byte of it differs.
    """
    if not path.is_file():
        raise FormatError(f"{path} is missing; restore it from a copy or build the index again")
    if path.stat().st_size != expected.bytes:
        raise FormatError(
            f"{path} has {path.stat().st_size:,} bytes instead of {expected.bytes:,}: it is damaged"
        )
    if describe_file(path).sha256 != expected.sha256:
        raise FormatError(f"{path} does not have the checksum its manifest says: it is damaged")


def describe_file(path: Path) -> ArrayFile:
    """Size and checksum of a file as it is now."""
    with path.open("rb") as file:
        return ArrayFile(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())
