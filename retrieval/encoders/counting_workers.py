"""Term counting on several cores: worker processes that analyse batches of texts, results in order.

Workers are plain child processes that talk over pipes rather than a multiprocessing pool: they do not import
the caller's main module (so a script needs no ``if __name__ == "__main__"``), and when the parent is killed
they see the end of their input and stop.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

from retrieval.encoders.english import EnglishAnalyzer, TermCounts
from runtime.errors import LexpertError

START_AFTER_BATCHES = 4
"""Small collections are counted before a worker process would have started."""


def count_batches(batches: Iterable[Sequence[str]], workers: int) -> Iterator[TermCounts]:
    """Count the terms of each batch, in order, with `workers` processes once that is worth their start."""
    analyzer = EnglishAnalyzer()
    remaining = iter(batches)
    for number, batch in enumerate(remaining, start=1):
        yield analyzer.count(batch)
        if workers > 1 and number == START_AFTER_BATCHES:
            break
    if workers > 1:
        yield from _count_in_processes(remaining, workers)


def _count_in_processes(batches: Iterator[Sequence[str]], workers: int) -> Iterator[TermCounts]:
    processes: list[subprocess.Popen[bytes]] = []
    mine = threading.local()

    def count(batch: Sequence[str]) -> TermCounts:
        if not hasattr(mine, "process"):
            command = [sys.executable, "-m", "retrieval.encoders.counting_workers"]
            mine.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            processes.append(mine.process)
        try:
            pickle.dump(list(batch), mine.process.stdin, protocol=5)
            mine.process.stdin.flush()
            result: TermCounts = pickle.load(mine.process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise LexpertError(
                f"a text analysis process ended unexpectedly (exit code {mine.process.poll()}); "
                "run again, with --workers 1 if memory is short"
            ) from error
        return result

    with ThreadPoolExecutor(workers, thread_name_prefix="count") as threads:
        waiting: deque[Future[TermCounts]] = deque()
        try:
            for batch in batches:
                waiting.append(threads.submit(count, batch))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            threads.shutdown(wait=True)
            for process in processes:
                process.communicate()


def serve(requests: BinaryIO, responses: BinaryIO) -> None:
    """Answer batches of texts with their counts until the input ends."""
    analyzer = EnglishAnalyzer()
    while True:
        try:
            batch = pickle.load(requests)
        except EOFError:
            return
        pickle.dump(analyzer.count(batch), responses, protocol=5)
        responses.flush()


if __name__ == "__main__":
    try:
        serve(sys.stdin.buffer, sys.stdout.buffer)
    except (BrokenPipeError, KeyboardInterrupt):
        sys.exit(1)
