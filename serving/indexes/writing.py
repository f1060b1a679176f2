"""What the routes ask of the process that writes, wherever that is."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from runtime.errors import LexpertError
from serving.errors import RETRY, ApiError
from serving.indexes.known_answers import KnownAnswer
from serving.indexes.live_index import LiveIndex, Operation, not_writable
from serving.indexes.write_log import LogClosedError, Write
from serving.indexes.writers import NewIndex, Writers

THREADS = 4
"""Indexes that are made, opened or copied at the same time."""


SNAPSHOT_COMMIT_S = 30.0
"""How long a snapshot waits for what was answered before it to be committed."""


@dataclass(frozen=True)
class Written:
    """What became of a write.

    Attributes:
        version: number of a commit that has it; None if none has it yet.
        deleted: documents that it deleted, if a commit has it.
        answer: that of the request that first had this key; None without a key.
    """

    version: int | None
    deleted: int | None
    answer: dict[str, Any] | None


class Writing(Protocol):
    """Raises ApiError in all methods, as those of `Writers` do."""

    async def started(self) -> None:
        """Return when the logs of an earlier process are applied."""
        ...

    async def create(self, name: str, new: NewIndex) -> bool: ...

    async def delete(self, name: str) -> None: ...

    async def set_aliases(self, changes: dict[str, str | None]) -> dict[str, str]: ...

    async def snapshot(self, name: str, uid: str) -> dict[str, Any]: ...

    async def pending(self, name: str, uid: str) -> dict[str, int]: ...

    async def knows(self, name: str, uid: str, key: str) -> bool: ...

    async def write(
        self, name: str, uid: str, operation: Operation, known: KnownAnswer | None, commit_s: float
    ) -> Written:
        """Return when a write is durable, and then when it is committed, unless that takes longer than `commit_s`."""
        ...


class LocalWriting:
    """Writers in this process."""

    def __init__(self, writers: Writers) -> None:
        self._writers = writers
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="writing")

    async def started(self) -> None:
        """They are opened before they are given to anybody."""

    async def create(self, name: str, new: NewIndex) -> bool:
        return await self._in_thread(partial(self._writers.create, name, new))

    async def delete(self, name: str) -> None:
        await self._in_thread(partial(self._writers.delete, name))

    async def set_aliases(self, changes: dict[str, str | None]) -> dict[str, str]:
        return await self._in_thread(partial(self._writers.set_aliases, changes))

    async def snapshot(self, name: str, uid: str) -> dict[str, Any]:
        await self.write(name, uid, {}, None, SNAPSHOT_COMMIT_S)
        return await self._in_thread(partial(self._writers.snapshot, name, uid))

    async def pending(self, name: str, uid: str) -> dict[str, int]:
        live = self._writers.opened(name, uid)
        documents, size = live.pending() if live is not None else (0, 0)
        return {"documents": documents, "bytes": size}

    async def knows(self, name: str, uid: str, key: str) -> bool:
        live = await self._live(name, uid)
        return await self._in_thread(partial(live.knows, key))

    async def write(
        self, name: str, uid: str, operation: Operation, known: KnownAnswer | None, commit_s: float
    ) -> Written:
        live = await self._live(name, uid)
        if known is None:  # no lock to wait for
            write, answer = live.write(operation, None, commit_s > 0)
        else:
            write, answer = await self._in_thread(partial(live.write, operation, known, commit_s > 0))
        try:
            await asyncio.wrap_future(write.durable)
        except LogClosedError:
            raise not_writable(None) from None
        except LexpertError as error:
            raise ApiError(
                503,
                "disk_full",
                "the server has no space left to keep this; nothing of it was kept",
                headers=RETRY,
            ) from error
        version = await self._commit(live, write, commit_s) if commit_s > 0 else None
        deleted = write.deleted if version is not None else None
        if answer is not None and "deleted" in answer:
            deleted = answer["deleted"] if answer["deleted"] is not None else deleted
        return Written(version, deleted, answer)

    async def _commit(self, live: LiveIndex, write: Write, commit_s: float) -> int | None:
        if not write.committed.done():
            live.wants_commit()
        try:
            async with asyncio.timeout(commit_s):
                return await asyncio.wrap_future(write.committed)
        except TimeoutError:
            return None

    async def _live(self, name: str, uid: str) -> LiveIndex:
        live = self._writers.opened(name, uid)
        return live if live is not None else await self._in_thread(partial(self._writers.live, name, uid))

    async def _in_thread(self, work: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
