"""Work that an event loop gives to threads."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress

import pytest

from serving.worker_threads import WorkerThreads


@pytest.fixture
def threads() -> Iterator[WorkerThreads]:
    opened = WorkerThreads(2, "work")
    yield opened
    opened.close()


def test_what_work_returns_and_raises_comes_to_whoever_waits(threads: WorkerThreads) -> None:
    async def fails() -> None:
        await threads.run(lambda: [][1])

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*(threads.run(lambda number=number: number**2) for number in range(100)))  # type: ignore[misc]

    assert asyncio.run(all_of_them()) == [number**2 for number in range(100)]
    with pytest.raises(IndexError):
        asyncio.run(fails())


def test_so_many_work_at_the_same_time(threads: WorkerThreads) -> None:
    together = threading.Barrier(2)

    async def both() -> None:
        await asyncio.gather(threads.run(lambda: together.wait(30)), threads.run(lambda: together.wait(30)))

    asyncio.run(both())


def test_cancelled_work_is_not_begun_and_what_is_begun_ends_unheard(threads: WorkerThreads) -> None:
    go_on, begun = threading.Event(), threading.Semaphore(0)
    done: list[str] = []

    def held() -> None:
        begun.release()
        assert go_on.wait(30)
        done.append("held")

    async def cancel() -> None:
        tasks = [threads.run(held) for _ in range(2)]
        for _ in tasks:
            await asyncio.to_thread(begun.acquire)
        late = threads.run(lambda: done.append("late"))
        for task in (late, *tasks):
            task.cancel()
        await asyncio.gather(late, *tasks, return_exceptions=True)
        go_on.set()

    asyncio.run(cancel())
    threads.close()  # their event loop is gone, which is no matter
    assert done == ["held", "held"]


def test_closing_waits_for_all_work_and_refuses_more(threads: WorkerThreads) -> None:
    done: list[int] = []

    async def close_meanwhile() -> None:
        tasks = [threads.run(lambda: done.append(1)) for _ in range(20)]
        await asyncio.to_thread(threads.close)
        await asyncio.gather(*tasks)
        with pytest.raises(RuntimeError, match="no work any more"):
            await threads.run(lambda: None)

    asyncio.run(close_meanwhile())
    assert len(done) == 20


@pytest.mark.parametrize("is_failing", [False, True])
def test_nothing_of_finished_work_is_kept(threads: WorkerThreads, is_failing: bool) -> None:
    class Kept:
        def work(self) -> None:
            if is_failing:
                raise KeyError

    async def run_once() -> weakref.ref[Kept]:
        kept = Kept()
        with suppress(KeyError):
            await threads.run(kept.work)
        return weakref.ref(kept)

    found = asyncio.run(run_once())
    threads.close()
    assert found() is None
