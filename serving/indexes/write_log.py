"""The log of one index: what was answered is in here until a commit has it.

Writes that wait together are made durable together, with one `fdatasync`. Measured on a disk where that takes
10 ms, a commit of one document, which writes and syncs some twenty files, took 700 ms.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from serving.indexes.record_file import Numbered, RecordFile, read_records

SUFFIX = ".log"
AT_ONCE_BYTES = 8 << 20
"""What is written in one frame, unless one write alone is longer."""


class LogClosedError(Exception):
    """A write came after the log was closed; it is not in there."""


def running_future() -> Future[int]:
    """A future that who waits for it cannot cancel for all others."""
    future: Future[int] = Future()
    future.set_running_or_notify_cancel()
    return future


@dataclass(eq=False)
class Write:
    """One write on its way.

    Attributes:
        record: what the log keeps.
        wants_commit: whether somebody waits for `committed`, so that a commit should come soon.
        durable: its number, once it is on the disk.
        committed: number of the commit that first had it.
        deleted: documents that it deleted, known once it is committed.
    """

    record: bytes
    wants_commit: bool = False
    durable: Future[int] = field(default_factory=running_future)
    committed: Future[int] = field(default_factory=running_future)
    deleted: int = 0


def read_log(folder: Path) -> Iterator[Numbered]:
    """What no commit may have yet, in order; may begin with what one has.

    Raises:
        FormatError: the log is damaged, beyond a last write that was never answered.
    """
    paths = sorted(folder.glob(f"*{SUFFIX}"))
    for path in paths:
        yield from read_records(path, is_last=path == paths[-1])


def clear_log(folder: Path) -> None:
    """Remove a log that a commit has all of, the newest file last: what is left is always an end of it."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        path.unlink()


class WriteLog:
    """Appends writes in a thread of its own.

    Args:
        folder: holds the files of the log, none when this starts; created if missing.
        accept: is given writes that are durable, in their order; may block, and by that hold back further ones.
    """

    def __init__(self, folder: Path, accept: Callable[[Sequence[Write]], None]) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._accept = accept
        self._waiting: list[Write] = []
        self._changed = threading.Condition()
        self._is_closing = False
        self._writing = threading.Lock()
        self._file: RecordFile | None = None
        self._full: list[tuple[Path, int]] = []
        self._next = 1
        self._thread = threading.Thread(target=self._run, name="write-log", daemon=True)
        self._thread.start()

    def append(self, write: Write) -> None:
        """Have a write made durable; its future says when."""
        with self._changed:
            if self._is_closing:
                write.durable.set_exception(LogClosedError())
                return
            self._waiting.append(write)
            self._changed.notify()

    def rotate(self) -> None:
        """Go on in a new file, so that `drop_through` can remove the present one."""
        with self._writing:
            if self._file is not None:
                self._file.close()
                self._full.append((self._file.path, self._next - 1))
                self._file = None

    def drop_through(self, number: int) -> None:
        """Remove the files of which a commit has everything, given the last write that it has."""
        with self._writing:
            while self._full and self._full[0][1] <= number:
                self._full.pop(0)[0].unlink(missing_ok=True)

    def close(self) -> None:
        """Write what waits, and end."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()
        with self._writing:
            if self._file is not None:
                self._file.close()
                self._full.append((self._file.path, self._next - 1))
                self._file = None

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closing)
                if not self._waiting:
                    return
                writes = [self._waiting.pop(0)]
                size = len(writes[0].record)
                while self._waiting and size + len(self._waiting[0].record) <= AT_ONCE_BYTES:
                    writes.append(self._waiting.pop(0))
                    size += len(writes[-1].record)
            self._write(writes)

    def _write(self, writes: Sequence[Write]) -> None:
        try:
            with self._writing:
                first = self._next
                if self._file is None:
                    self._file = RecordFile(self._folder / f"{first:016d}{SUFFIX}")
                self._file.append([write.record for write in writes], first)
                self._next += len(writes)
        except Exception as error:
            for write in writes:
                write.durable.set_exception(error)
            return
        # First the answer, which may go out whatever `accept` has to wait for.
        for number, write in enumerate(writes, first):
            write.durable.set_result(number)
        self._accept(writes)
