"""What the handlers of one replica share: configuration, open indexes, and the threads that do the work."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from serving.asgi import Header, Request, Response
from serving.asked_timeout import asked_timeout_s
from serving.catalogue import Catalogue, Searched, ServedIndex
from serving.configuration import ServerConfiguration
from serving.deadline import Deadline
from serving.encoding import Rest, ToEncode
from serving.errors import RETRY, ApiError, overloaded
from serving.generators import Generators
from serving.indexes.readers import Readers, reaches
from serving.indexes.writers import Writers
from serving.indexes.writing import LocalWriting, Writing
from serving.metrics import Metrics
from serving.shards import OpenShards, Sharding, in_this_process
from serving.streaming import unless_gone
from serving.worker_threads import WorkerThreads

logger = logging.getLogger("serving")

STARTED_S = 60.0
"""How long a start waits for the process that writes: it may have a long log to apply."""

Result = TypeVar("Result")

Work = Callable[[bytes, Deadline], "Rest | AwaitsVersion"]
"""From a request's body to the answer's, or to what remains to be done when texts are encoded, when shards have
answered, or when the index is at a later version."""


@dataclass(frozen=True)
class AwaitsVersion:
    """Work on an index that goes on when it is at a version or a later one."""

    served: Searched
    version: int
    go_on: Callable[[], Rest]


class ServerState:
    """Opened by `open`, ready until `close`.

    Args:
        configuration: what to serve.
        writing: the process that writes; None for this one.
        generators: where the models are; None for this process.
        open_shards: where the shards of indexes are; None for this process.
    """

    def __init__(
        self,
        configuration: ServerConfiguration,
        writing: Writing | None = None,
        generators: Generators | None = None,
        open_shards: OpenShards | None = None,
    ) -> None:
        self.configuration = configuration
        self.metrics = Metrics()
        self._readers: Readers | None = None
        self._writers: Writers | None = None
        if writing is None:
            self._writers = Writers(configuration)
            writing = LocalWriting(self._writers)
        self.writing: Writing = writing
        self.generators = Generators(configuration.models) if generators is None else generators
        self._sharding = Sharding(
            open_shards or in_this_process(configuration.threads), configuration.limits.shard_timeout_s
        )
        self._threads = WorkerThreads(configuration.threads, "serving")
        self._in_hand = self._writes_in_hand = 0

    @property
    def is_ready(self) -> bool:
        """Whether the indexes are open."""
        return self._readers is not None

    @property
    def catalogue(self) -> Catalogue:
        """The open indexes; 503 while they are being opened or after the server began to stop."""
        if self._readers is None:
            raise ApiError(
                503,
                "not_ready",
                "the server is opening its indexes, or stopping; try again shortly",
                headers=RETRY,
            )
        return self._readers.catalogue

    async def start(self) -> None:
        """Open everything, when the processes that write and that hold models have started.

        Should the one that writes not come up in time, searches begin without it.
        """
        try:
            async with asyncio.timeout(STARTED_S):
                await self.writing.started()
        except (ApiError, TimeoutError):
            logger.warning("the process that writes has not started; what it has to apply is seen later")
        await asyncio.to_thread(self.open)
        for generator in self.generators.values():
            await generator.about()

    def open(self) -> None:
        """Open the indexes, load their encoders and warm the kernels up (blocking)."""
        readers = Readers(self.configuration, self._sharding)
        if self._writers is not None:
            self._writers.open()
        try:
            readers.open()
            self.generators.open()
        except BaseException:
            readers.close()
            self._close_writers()
            raise
        self._readers = readers

    def close(self) -> None:
        """Let running work end, commit what was written, then close the indexes (blocking)."""
        readers, self._readers = self._readers, None
        self.generators.close()
        self._threads.close()
        self._close_writers()
        if readers is not None:
            readers.close()

    def _close_writers(self) -> None:
        if self._writers is not None:
            self._writers.close()

    async def look_for(self, name: str) -> None:
        """Take in an index of that name, or an alias, that another process may have made a moment ago."""
        readers = self._readers
        if readers is not None and not readers.catalogue.has(name):
            await asyncio.to_thread(readers.look)

    async def index(self, name: str) -> ServedIndex:
        """See `Catalogue.index`; looked for on the disk before it is said not to be there."""
        await self.look_for(name)
        return self.catalogue.index(name)

    async def see(self, has_come: Callable[[Catalogue], bool], timeout_s: float) -> bool:
        """Wait until the open indexes fulfil a condition; whether they did in time."""
        readers = self._readers
        return readers is not None and await readers.wait_for(has_come, timeout_s)

    @contextmanager
    def writing_admitted(self) -> Iterator[None]:
        """Count a write among those that are read or wait, or refuse it: 429."""
        if self._writes_in_hand >= self.configuration.limits.max_writes:
            raise overloaded()
        self._writes_in_hand += 1
        try:
            yield
        finally:
            self._writes_in_hand -= 1

    async def respond(self, request: Request, work: Work, *, takes_timeout: bool = False) -> Response:
        """Read a request's body and work on it in a thread: the event loop stays free for other requests.

        The answer says in ms how long it waited for threads and how long it worked. When the client goes away
        or the time is over, the thread is told to stop.

        Args:
            takes_timeout: whether the body may ask for less time than the server gives a request.

        Raises:
            ApiError: 408, 413 or 415 for the body, 429 if as many requests are in hand as the server takes, 504
                if the time is over; and what `work` raises.
        """
        limits = self.configuration.limits
        with self.admitted():
            body = await request.json_body(limits.max_body_bytes, limits.body_timeout_s)
            asked_s = await asked_timeout_s(body) if takes_timeout else math.inf
            deadline = Deadline(min(asked_s, limits.timeout_s), is_asked=asked_s < limits.timeout_s)
            request.intervals = deadline.intervals
            asked = time.perf_counter()
            worked: list[float] = []
            answer = await self.work(work, body, deadline, worked, request)
        total = time.perf_counter() - asked
        deadline.note("queue", total - sum(worked))
        self.metrics.spent(request.route, deadline)
        return Response(
            200,
            answer,
            (
                milliseconds(b"x-queue-time", total - sum(worked)),
                milliseconds(b"x-inference-time", sum(worked)),
                milliseconds(b"x-total-time", total),
            ),
        )

    async def work(
        self, work: Work, body: bytes, deadline: Deadline, worked: list[float], request: Request
    ) -> bytes:
        """What comes of work in threads, and of encoding and shards between; notes the seconds it took in `worked`.

        Raises:
            ApiError: 504 if the time is over, 429 if it would be; and what `work` raises.
            ClientGoneError: while texts waited to be encoded.
        """
        try:
            async with asyncio.timeout(deadline.timeout_s):
                answer = await self._in_thread(worked, lambda: work(body, deadline), deadline)
                if isinstance(answer, AwaitsVersion):
                    await self._reach(answer, deadline)
                    answer = await self._in_thread(worked, answer.go_on, deadline)
                rest: Callable[[], Rest]
                while not isinstance(answer, bytes):
                    if isinstance(answer, ToEncode):
                        encoded = await unless_gone(request, answer.encoded(deadline))
                        worked.append(encoded.seconds)
                        rest = partial(answer.finish, encoded.rows, encoded.tokens)
                    else:
                        asked = time.perf_counter()
                        found = await unless_gone(request, answer.answers(deadline))
                        worked.append(time.perf_counter() - asked)
                        rest = partial(answer.merged, found, deadline)
                    answer = await self._in_thread(worked, rest, deadline)
                return answer
        except TimeoutError:
            raise deadline.over() from None
        finally:
            deadline.stop()

    async def _reach(self, awaited: AwaitsVersion, deadline: Deadline) -> None:
        """Wait until the index is at the version that a search asks for.

        Raises:
            ApiError: 409 if this server never writes to it, 504 if the time is over.
        """
        version = awaited.served.version
        if not isinstance(awaited.served, ServedIndex) or not awaited.served.is_writable:
            raise ApiError(
                409,
                "version_not_reached",
                f"the index is at version {version} and read-only here, but min_version is {awaited.version}",
                "min_version",
            )
        has_come = reaches(awaited.served.name, awaited.served.uid, awaited.version)
        if not await self.see(has_come, deadline.remaining_s * 0.95):
            raise ApiError(
                504,
                "version_not_reached",
                f"the index was at version {version}, and did not come to min_version {awaited.version} within "
                f"{deadline.timeout_s:g} s; take a version that a write or a search has answered",
                "min_version",
            )

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request among those in hand, or refuse it."""
        if self._in_hand >= self.configuration.limits.max_in_hand:
            raise overloaded()
        self._in_hand += 1
        try:
            yield
        finally:
            self._in_hand -= 1

    async def _in_thread(self, worked: list[float], work: Callable[[], Result], deadline: Deadline) -> Result:
        """Run `work` in a thread, unless the request is over before one is free; notes the seconds it took."""

        asked = time.perf_counter()

        def timed() -> Result:
            deadline.check()
            started = time.perf_counter()
            deadline.mark("queue", asked, started)
            try:
                return work()
            finally:
                worked.append(time.perf_counter() - started)

        return await self._threads.run(timed)


def milliseconds(name: bytes, seconds: float) -> Header:
    return name, b"%.3f" % (seconds * 1e3)
