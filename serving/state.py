"""What the handlers of one replica share: configuration, open indexes, and the threads that do the work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from serving.asgi import Header, Request, Response
from serving.catalogue import Catalogue
from serving.configuration import ServerConfiguration
from serving.deadline import Deadline
from serving.encoding import EncodingTurn
from serving.errors import ApiError

Result = TypeVar("Result")

Work = Callable[[bytes, Deadline], "bytes | EncodingTurn[Any]"]
"""From a request's body to the answer's, or to what remains to be done when it is its turn at an encoder."""


class ServerState:
    """Opened by `open`, ready until `close`."""

    def __init__(self, configuration: ServerConfiguration) -> None:
        self.configuration = configuration
        self._catalogue: Catalogue | None = None
        self._threads = ThreadPoolExecutor(configuration.threads, thread_name_prefix="serving")
        self._in_hand = 0

    @property
    def catalogue(self) -> Catalogue:
        """The open indexes; 503 while they are being opened or after the server began to stop."""
        if self._catalogue is None:
            raise ApiError(
                503,
                "not_ready",
                "the server is opening its indexes, or stopping; try again shortly",
                headers=[(b"retry-after", b"1")],
            )
        return self._catalogue

    def open(self) -> None:
        """Open the indexes, load their encoders and warm the kernels up (blocking)."""
        catalogue = Catalogue.open(self.configuration.indexes)
        catalogue.warm_up()
        self._catalogue = catalogue

    def close(self) -> None:
        """Let running work end, then close the indexes (blocking)."""
        catalogue, self._catalogue = self._catalogue, None
        self._threads.shutdown()
        if catalogue is not None:
            catalogue.close()

    async def respond(self, request: Request, work: Work) -> Response:
        """Read a request's body and work on it in a thread: the event loop stays free for other requests.

        The answer says in ms how long it waited for threads and how long it worked. When the client goes away
        or the time is over, the thread is told to stop.

        Raises:
            ApiError: 408, 413 or 415 for the body, 429 if as many requests are in hand as the server takes, 504
                if the time is over; and what `work` raises.
        """
        limits = self.configuration.limits
        with self._admitted():
            body = await request.json_body(limits.max_body_bytes, limits.body_timeout_s)
            deadline = Deadline(limits.timeout_s)
            asked = time.perf_counter()
            worked: list[float] = []
            try:
                async with asyncio.timeout(limits.timeout_s):
                    answer = await self._in_thread(worked, lambda: work(body, deadline), deadline)
                    if isinstance(answer, EncodingTurn):
                        rest = answer
                        async with rest.turn:
                            encoded = await self._in_thread(worked, rest.encode, deadline)
                        answer = await self._in_thread(worked, lambda: rest.finish(encoded), deadline)
            except TimeoutError:
                raise deadline.over() from None
            finally:
                deadline.stop()
        total = time.perf_counter() - asked
        return Response(
            200,
            answer,
            (
                milliseconds(b"x-queue-time", total - sum(worked)),
                milliseconds(b"x-inference-time", sum(worked)),
                milliseconds(b"x-total-time", total),
            ),
        )

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        """Count a request among those in hand, or refuse it."""
        if self._in_hand >= self.configuration.limits.max_in_hand:
            raise ApiError(
                429,
                "overloaded",
                "the server has as many requests waiting as it takes; try again later",
                headers=[(b"retry-after", b"1")],
            )
        self._in_hand += 1
        try:
            yield
        finally:
            self._in_hand -= 1

    async def _in_thread(self, worked: list[float], work: Callable[[], Result], deadline: Deadline) -> Result:
        """Run `work` in a thread, unless the request is over before one is free; notes the seconds it took."""

        def timed() -> Result:
            deadline.check()
            started = time.perf_counter()
            try:
                return work()
            finally:
                worked.append(time.perf_counter() - started)

        return await asyncio.get_running_loop().run_in_executor(self._threads, timed)


def milliseconds(name: bytes, seconds: float) -> Header:
    return name, b"%.3f" % (seconds * 1e3)
