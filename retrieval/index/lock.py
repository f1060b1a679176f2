"""One writer per index, across processes; the lock ends with the process, however that ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from runtime.errors import ConflictError

LOCK_FILE = "write.lock"


class WriterLock:
    """An exclusive lock on an index folder, which is created if it is missing.

    Raises:
        ConflictError: another process, or another writer in this one, holds it; names the process.
    """

    def __init__(self, index: Path) -> None:
        index.mkdir(parents=True, exist_ok=True)
        self._file = os.open(index / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._file, 20, 0).decode("ascii", "replace").strip()
            os.close(self._file)
            raise ConflictError(
                f"{index} is being written by another process (pid {holder or 'unknown'}); "
                "wait until it is done, or write to another folder"
            ) from None
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)
        except OSError:  # a full disk; an open file would keep the lock
            os.close(self._file)
            raise

    def release(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
