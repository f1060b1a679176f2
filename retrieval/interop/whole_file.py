"""Files that appear under their name when they are complete, and not before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from retrieval.index.arrays import disk_errors, sync_folder
from runtime.errors import ConflictError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a name to write a file under; leaving makes it durable as `path`, by an exception removes it.

    Raises:
        ConflictError: `path` exists.
        LexpertError: no space is left.
    """
    check_free(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.rename(path)
            sync_folder(path.parent)
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """A folder on the disk of `beside`, for what is too large for memory; gone when the context is left."""
    folder = beside.with_name(f".{beside.name}.{os.getpid()}.scratch")
    shutil.rmtree(folder, ignore_errors=True)  # of a killed process that had the same number
    try:
        with disk_errors(beside):
            folder.mkdir(parents=True)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_free(path: Path) -> None:
    """Raise ConflictError if `path` exists."""
    if path.exists():
        raise ConflictError(f"{path} exists; remove it or write to another place")
