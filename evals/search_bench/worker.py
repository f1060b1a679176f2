"""The process of one engine: reads requests, one JSON object a line, and answers each by one.

``build`` builds an index; ``open`` opens one; ``round`` answers a run of queries and says how long each took;
``threads`` compares one thread with two (ours only). Answers go to what was standard output; whatever engines print
goes to standard error.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from evals.search_bench.csr_file import map_csr_file
from evals.search_bench.engines.catalogue import load_engine
from evals.search_bench.truth import Truth, load_truth
from runtime.errors import LexpertError
from runtime.folder_bytes import folder_bytes

WARM_UP = 20
"""Queries before each round that are not counted: the caches hold what another process left there."""


class Worker:
    """One engine, and the index that it has open."""

    def __init__(self, engine: str) -> None:
        self._engine = load_engine(engine)
        self._settings: dict[str, dict[str, Any]] = {}
        self._truths: dict[str, Truth] = {}

    def build(self, documents: str, folder: str, options: dict[str, Any]) -> dict[str, Any]:
        """Build an index; it appears under its name when it is complete."""
        self._engine.load()
        vectors = map_csr_file(Path(documents))
        path, scratch = Path(folder), Path(f"{folder}.scratch")
        for left in (path, scratch):
            shutil.rmtree(left, ignore_errors=True)
            left.mkdir(parents=True)
        try:
            seconds = self._engine.build(vectors, path, options, scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return {"build_s": seconds, "bytes": folder_bytes(path)}

    def open(
        self, folder: str, options: dict[str, Any], queries: str, k: int, setting: dict[str, Any]
    ) -> dict[str, Any]:
        """Open an index and answer the first query."""
        vectors = map_csr_file(Path(queries))
        self._engine.load()
        before = resident_bytes()
        started = time.perf_counter()
        self._engine.open(Path(folder), options)
        opened = time.perf_counter()
        self._queries = [
            self._engine.prepare(np.array(units, np.int32), np.array(weights, np.float32))
            for units, weights in vectors
        ]
        self._vectors = vectors
        begun = time.perf_counter()
        self._engine.search(self._queries[0], k, setting)
        first = time.perf_counter() - begun
        self._resident_before = before
        return {"open_s": opened - started, "first_query_us": 1e6 * first}

    def round(self, setting: dict[str, Any], k: int, count: int, truth: str | None) -> dict[str, Any]:
        """Answer the first `count` queries, after a few uncounted ones; recall too, where `truth` is given."""
        setting = self._settings.setdefault(json.dumps(setting, sort_keys=True), setting)
        search, queries = self._engine.search, self._queries[:count]
        for query in queries[-WARM_UP:]:
            search(query, k, setting)
        found, times = [], np.empty(len(queries))
        busy = time.thread_time()
        for row, query in enumerate(queries):
            started = time.perf_counter()
            answer = search(query, k, setting)
            times[row] = time.perf_counter() - started
            found.append(answer if truth else None)
        busy = time.thread_time() - busy
        answer = {"us": (1e6 * times).round(2).tolist(), "busy_us": 1e6 * busy / len(queries)}
        if truth:
            if truth not in self._truths:
                self._truths[truth] = load_truth(Path(truth))
            exact = self._truths[truth]
            answer["recall"] = float(
                np.mean([exact.recall(row, self._engine.hits(hits)[0]) for row, hits in enumerate(found)])
            )
            answer["work"] = self._engine.work(queries, k, setting)
        answer["resident_bytes"] = resident_bytes()
        answer["index_resident_bytes"] = resident_bytes() - self._resident_before
        return answer

    def threads(self, setting: dict[str, Any], k: int, count: int, rounds: int) -> dict[str, Any]:
        """Seconds of a batch on one thread and on two, the medians of rounds that alternate."""
        taken: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(rounds + 1):
            for threads, times in taken.items():
                started = time.perf_counter()
                self._engine.search_together(self._vectors[:count], k, setting, threads)  # type: ignore[attr-defined]
                times.append(time.perf_counter() - started)
        return {str(threads): float(np.median(times[1:])) for threads, times in taken.items()}


def resident_bytes() -> int:
    """Memory of this process that is in RAM, the mapped pages of files included."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Serve requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.sched_setaffinity(0, json.loads(sys.argv[2]))
    worker = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            worker = worker or Worker(sys.argv[1])
            answer = getattr(worker, request.pop("do"))(**request)
        except LexpertError as error:
            answer = {"error": str(error)}
        except (
            Exception
        ) as error:  # of engines whose errors are their own; the controller passes over the index
            answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
