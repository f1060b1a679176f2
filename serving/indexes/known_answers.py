"""What requests with an Idempotency-Key were answered, so that the same request again is not worked on again."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from serving.indexes.record_file import RecordFile, read_records
from serving.indexes.write_log import Write

KEPT_S = 24 * 3600.0
KEPT_BYTES = 16 << 20
"""How long answers are kept, and how much memory they may take; the oldest go first."""

SUFFIX = ".answers"


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """The answer to one request.

    Attributes:
        key: of the client.
        digest: of the request, so that another request with the same key is found out.
        answer: what is known of the answer when the write is logged.
        at: seconds since the epoch.
    """

    key: str
    digest: str
    answer: dict[str, Any]
    at: float = field(default_factory=time.time)

    @property
    def size(self) -> int:
        return 300 + len(self.key) + len(orjson.dumps(self.answer))


class KnownAnswers:
    """Answers in memory, and on the disk once a commit has their writes; before that the log has them.

    Not for several threads at once.

    Args:
        folder: where their files are.

    Raises:
        FormatError: a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: OrderedDict[str, tuple[KnownAnswer, Write | None, int]] = OrderedDict()
        self._bytes = 0
        self._unsaved: list[KnownAnswer] = []
        self._file: RecordFile | None = None
        self._saved = 0
        for answer in self._read():
            self._keep(answer, None)

    def find(self, key: str) -> tuple[KnownAnswer, Write | None] | None:
        """The answer that a key had, and its write unless that is known to be committed."""
        found = self._known.get(key)
        if found is None or found[0].at < time.time() - KEPT_S:
            return None
        return found[:2]

    def note(self, answer: KnownAnswer, write: Write | None) -> None:
        """Keep an answer, on the disk from the next `save` on."""
        self._keep(answer, write)

    def forget(self, key: str) -> None:
        """The write of that key came to nothing."""
        found = self._known.pop(key, None)
        self._bytes -= found[2] if found else 0

    def committed(self, key: str, deleted: int) -> None:
        """A commit has the write of that key, which deleted so many documents."""
        found = self._known.get(key)
        if found is None:
            return
        answer = found[0]
        if "deleted" in answer.answer:
            answer = KnownAnswer(answer.key, answer.digest, {**answer.answer, "deleted": deleted}, answer.at)
        self._known[key] = (answer, None, found[2])
        self._unsaved.append(answer)

    def save(self) -> None:
        """Make durable what was committed since the last call.

        Raises:
            LexpertError: no space is left.
        """
        if not self._unsaved:
            return
        # One file grows by what is new; when most of it is outdated, the next one begins with all that is kept.
        if self._file is None or self._saved > 2 * len(self._known) + 100:
            self._begin_file()
        assert self._file is not None
        self._file.append([orjson.dumps(asdict(answer)) for answer in self._unsaved], self._saved + 1)
        self._saved += len(self._unsaved)
        self._unsaved = []

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin_file(self) -> None:
        before = self._paths()
        self.close()
        number = int(before[-1].stem) + 1 if before else 1
        unsaved = {answer.key for answer in self._unsaved}
        saved = [
            answer for answer, write, _ in self._known.values() if write is None and answer.key not in unsaved
        ]
        temporary = self._folder / f"{number:08d}.new"
        temporary.unlink(missing_ok=True)
        file = RecordFile(temporary)
        if saved:
            file.append([orjson.dumps(asdict(answer)) for answer in saved], 1)
        file.path = temporary.rename(temporary.with_suffix(SUFFIX))
        self._file, self._saved = file, len(saved)
        folder = os.open(self._folder, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        for path in before:
            path.unlink()

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob(f"*{SUFFIX}"))

    def _read(self) -> Iterator[KnownAnswer]:
        paths = self._paths()
        for path in paths:
            for _, record in read_records(path, is_last=path == paths[-1]):
                yield KnownAnswer(**orjson.loads(record))

    def _keep(self, answer: KnownAnswer, write: Write | None) -> None:
        self.forget(answer.key)
        self._known[answer.key] = (answer, write, answer.size)
        self._bytes += answer.size
        oldest_kept = time.time() - KEPT_S
        while self._known:
            oldest, of_write, size = next(iter(self._known.values()))
            if of_write is not None or (self._bytes <= KEPT_BYTES and oldest.at >= oldest_kept):
                return
            self._known.popitem(last=False)
            self._bytes -= size
