"""The threads in which a server does what would hold up its event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeAlias, TypeVar

Result = TypeVar("Result")

Job: TypeAlias = "tuple[Callable[[], Any], asyncio.AbstractEventLoop, asyncio.Future[Any]]"


class WorkerThreads:
    """Threads that take work from event loops, first come, first served.

    As `ThreadPoolExecutor` with `run_in_executor`, for less than half of what that costs an event loop: a result comes
    without a future of threads between, which has locks of its own.

    Args:
        count: work that is done at the same time.
        name: begins the names of the threads, which start with the first work.
    """

    def __init__(self, count: int, name: str) -> None:
        self._waiting: SimpleQueue[Job | None] = SimpleQueue()
        self._threads = [
            Thread(target=_work_on, args=(self._waiting,), name=f"{name}_{number}", daemon=True)
            for number in range(count)
        ]
        self._has_started = self._is_closed = False

    def run(self, work: Callable[[], Result]) -> asyncio.Future[Result]:
        """What `work` will return, or raise, in a thread; work that is cancelled before it has begun is not done.

        Raises:
            RuntimeError: the threads were closed before.
        """
        if self._is_closed:
            raise RuntimeError("these threads take no work any more")
        if not self._has_started:
            self._has_started = True
            for thread in self._threads:
                thread.start()
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Result] = loop.create_future()
        self._waiting.put((work, loop, result))
        return result

    def close(self) -> None:
        """Take no more work, and return when all is done that was taken (blocking)."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._has_started:
            for _ in self._threads:
                self._waiting.put(None)
            for thread in self._threads:
                thread.join()


def _work_on(waiting: SimpleQueue[Job | None]) -> None:
    while (job := waiting.get()) is not None:
        _do(*job)
        del job  # while it waits for the next, nothing of this one should be kept


def _do(work: Callable[[], Any], loop: asyncio.AbstractEventLoop, result: asyncio.Future[Any]) -> None:
    if result.cancelled():
        return
    with suppress(RuntimeError):  # the event loop has ended, and nobody waits any more
        try:
            value = work()
        except BaseException as error:
            loop.call_soon_threadsafe(_settle, result, result.set_exception, error)
        else:
            loop.call_soon_threadsafe(_settle, result, result.set_result, value)
        finally:
            del work, result  # else an error would hold this frame, and with it itself


def _settle(result: asyncio.Future[Any], settle: Callable[[Any], None], outcome: Any) -> None:
    if not result.cancelled():
        settle(outcome)
