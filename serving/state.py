"""What the handlers of one replica share: configuration, open indexes, and the threads that do the work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec

from serving.asgi import Header, Response
from serving.catalogue import Catalogue
from serving.configuration import ServerConfiguration
from serving.errors import ApiError

Parameters = ParamSpec("Parameters")


class ServerState:
    """Opened by `open`, ready until `close`."""

    def __init__(self, configuration: ServerConfiguration) -> None:
        self.configuration = configuration
        self._catalogue: Catalogue | None = None
        self._threads = ThreadPoolExecutor(configuration.threads, thread_name_prefix="serving")

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

    async def respond(
        self, work: Callable[Parameters, bytes], *arguments: Parameters.args, **options: Parameters.kwargs
    ) -> Response:
        """Run `work`, which returns a JSON body, in a thread: the event loop stays free for other requests.

        The answer says in ms how long it waited for a thread and how long it worked.
        """

        def timed() -> tuple[bytes, float, float]:
            started = time.perf_counter()
            return work(*arguments, **options), started, time.perf_counter()

        asked = time.perf_counter()
        body, started, ended = await asyncio.get_running_loop().run_in_executor(self._threads, timed)
        return Response(
            200,
            body,
            (
                milliseconds(b"x-queue-time", started - asked),
                milliseconds(b"x-inference-time", ended - started),
                milliseconds(b"x-total-time", time.perf_counter() - asked),
            ),
        )


def milliseconds(name: bytes, seconds: float) -> Header:
    return name, b"%.3f" % (seconds * 1e3)
