"""The shards of an index, asked at the same time, here or in processes of their own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray

from runtime.activations import SparseActivations
from runtime.cores import available_cores
from serving.deadline import Deadline
from serving.encoding import BATCH
from serving.errors import RETRY, ApiError

if TYPE_CHECKING:
    from retrieval.index.sharded_index import ShardedIndex
    from retrieval.index.sparse_index import SparseIndex
    from retrieval.search.hits import Hits
    from retrieval.search.traversal import Traversal

logger = logging.getLogger("serving")

MESSAGE_BYTES = 7 << 19
"""Of a question to a shard, or its answer: Ray Serve carries 4 MiB, with what it adds."""

PIECE_POSTINGS = 1 << 18
PIECE_RESULTS = 1 << 17
"""Terms of the queries, and results wanted, of one question to a shard; larger searches are asked in several."""

RESULT_BYTES = 12

SHARE_OF_TIME = 0.9
"""Of what a request has left shards get so much: the rest is for merging and for the answer."""

Missing = Literal["timeout", "unavailable"]


class ShardUnavailableError(Exception):
    """The process of a shard has ended, or cannot be reached."""


@dataclass(frozen=True)
class ShardQueries:
    """A question to a shard, as arrays.

    Attributes:
        indptr, units, weights: of the query vectors, as `SparseActivations` has them.
        k: results wanted for each.
        filter: as JSON; empty for none.
        timeout_s: how long the answer is of use.
    """

    indptr: NDArray[np.int64]
    units: NDArray[np.int32]
    weights: NDArray[np.float32]
    num_units: int
    k: int
    traversal: Traversal
    filter: bytes
    timeout_s: float

    @property
    def num_bytes(self) -> int:
        return self.indptr.nbytes + self.units.nbytes + self.weights.nbytes + len(self.filter)


@dataclass(frozen=True)
class ShardHits:
    """What a shard found.

    Attributes:
        sizes: int64 ``[queries]``, how many results each query has.
        scores: float32, of all queries, one after the other.
        rows: int64, their rows in the shard.
    """

    sizes: NDArray[np.int64]
    scores: NDArray[np.float32]
    rows: NDArray[np.int64]

    def of_queries(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Scores and rows of each query."""
        ends = np.cumsum(self.sizes).tolist()
        for size, end in zip(self.sizes.tolist(), ends, strict=True):
            yield self.scores[end - size : end], self.rows[end - size : end]


class Shards(Protocol):
    """Where the shards of one index are."""

    async def search(self, shard: int, asked: ShardQueries) -> ShardHits:
        """Ask a shard.

        Raises:
            ShardUnavailableError: it cannot answer now.
            TimeoutError: the answer would be of no use any more.
        """
        ...

    def close(self) -> None: ...


OpenShards: TypeAlias = "Callable[[str, ShardedIndex], Shards]"
"""Finds the shards of an index, by its name."""


@dataclass(frozen=True)
class Sharding:
    """How the shards of indexes are found, and how long each may take."""

    open_shards: OpenShards
    timeout_s: float

    def fan_out(self, name: str, index: ShardedIndex) -> FanOut:
        return FanOut(name, index, self.open_shards(name, index), self.timeout_s)


def in_this_process(threads: int) -> OpenShards:
    """For shards with so many threads each."""
    return lambda _, index: LocalShards(index, threads)


LOCAL = Sharding(in_this_process(1), 10.0)


class LocalShards:
    """Shards in this process, each with threads of its own: a slow one takes none from the others."""

    def __init__(self, index: ShardedIndex, threads: int) -> None:
        self._index = index
        self._threads = [
            ThreadPoolExecutor(threads, thread_name_prefix=f"shard-{shard}")
            for shard in range(len(index.shards))
        ]
        self._threads_of_search = max(1, available_cores() // len(index.shards))

    async def search(self, shard: int, asked: ShardQueries) -> ShardHits:
        index, ends = self._index.shards[shard], time.monotonic() + asked.timeout_s
        work = partial(search_shard, index, asked, ends, self._threads_of_search)
        return await asyncio.get_running_loop().run_in_executor(self._threads[shard], work)

    def close(self) -> None:
        for threads in self._threads:
            threads.shutdown(cancel_futures=True)


def search_shard(index: SparseIndex, asked: ShardQueries, ends: float, threads: int) -> ShardHits:
    """Answer a question while there is time, until `ends` by `time.monotonic` (blocking)."""
    vectors = SparseActivations(asked.indptr, asked.units, asked.weights, asked.num_units)
    condition = orjson.loads(asked.filter) if asked.filter else None
    found = []
    for first in range(0, len(vectors), BATCH):
        if time.monotonic() >= ends:
            raise TimeoutError
        batch = vectors[first : first + BATCH]
        found += index.search_filtered(batch, asked.k, asked.traversal, condition, threads)
    return ShardHits(
        np.array([len(rows) for _, rows in found], np.int64),
        np.concatenate([np.zeros(0, np.float32), *(scores for scores, _ in found)]),
        np.concatenate([np.zeros(0, np.int64), *(rows for _, rows in found)]),
    )


@dataclass(frozen=True)
class FromShards:
    """The merged results of all queries, and which shards have no part in them, and why."""

    hits: Hits
    missing: Mapping[int, Missing]

    def batch(self, first: int, size: int) -> Hits:
        """The results of some of the queries."""
        chosen = slice(first, first + size)
        return replace(
            self.hits,
            ids=self.hits.ids[chosen],
            scores=self.hits.scores[chosen],
            unknown_terms=self.hits.unknown_terms[chosen],
        )


@dataclass(frozen=True)
class FanOut:
    """The shards of one index, asked together.

    Attributes:
        name: of the index.
        timeout_s: how long a shard may take at most.
    """

    name: str
    index: ShardedIndex
    shards: Shards
    timeout_s: float

    def to_shards(
        self,
        vectors: SparseActivations,
        k: int,
        condition: Mapping[str, Any] | None,
        traversals: Sequence[Traversal],
        allows_partial: bool,
        finish: Callable[[FromShards], bytes | ToShards],
    ) -> ToShards:
        """What remains of a search when its vectors, fit for scoring, are known.

        Raises:
            ApiError: 422 if it does not fit into a message.
        """
        of_shard = min(k, max(1, *(entry.documents for entry in self.index.manifest.shards)))
        if of_shard * RESULT_BYTES > MESSAGE_BYTES:
            raise too_large(self.name, "so many results", "k")
        filter_ = orjson.dumps(condition) if condition is not None else b""
        pieces = list(cut(vectors, of_shard))
        asked = [
            [
                ShardQueries(
                    piece.indptr,
                    piece.units,
                    piece.weights,
                    piece.num_units,
                    of_shard,
                    traversal,
                    filter_,
                    self.timeout_s,
                )
                for piece in pieces
            ]
            for traversal in traversals
        ]
        if any(piece.num_bytes > MESSAGE_BYTES for piece in asked[0]):
            raise too_large(self.name, "such a query and filter", None)
        return ToShards(self, asked, k, allows_partial, finish)


@dataclass(frozen=True)
class ToShards:
    """Questions to shards, and what is done with their answers. What `finish` leaves may be for other shards.

    Attributes:
        asked: for each shard, its questions, one after the other.
        k: results wanted in all for each query.
    """

    fan_out: FanOut
    asked: Sequence[Sequence[ShardQueries]]
    k: int
    allows_partial: bool
    finish: Callable[[FromShards], bytes | ToShards]

    async def answers(self, deadline: Deadline) -> list[list[ShardHits] | Missing]:
        """What each shard found, or why it did not; cancelling it gives the questions up."""
        began = time.perf_counter()
        timeout_s = min(self.fan_out.timeout_s, SHARE_OF_TIME * deadline.remaining_s)
        asking = [
            asyncio.create_task(self._ask(shard, questions, time.monotonic() + timeout_s))
            for shard, questions in enumerate(self.asked)
        ]
        for task in asking:
            task.add_done_callback(
                lambda task: task.cancelled() or task.exception()
            )  # looked at by nobody else
        until = asyncio.ALL_COMPLETED if self.allows_partial else asyncio.FIRST_EXCEPTION
        try:
            await asyncio.wait(asking, timeout=timeout_s, return_when=until)
            return [self._outcome(shard, task) for shard, task in enumerate(asking)]
        finally:
            for task in asking:
                task.cancel()
            deadline.passed("search", began, time.perf_counter())

    async def _ask(self, shard: int, questions: Sequence[ShardQueries], ends: float) -> list[ShardHits]:
        found = []
        for question in questions:
            limited = replace(question, timeout_s=ends - time.monotonic())
            found.append(await self.fan_out.shards.search(shard, limited))
        return found

    def _outcome(self, shard: int, task: asyncio.Task[list[ShardHits]]) -> list[ShardHits] | Missing:
        if not task.done():
            return "timeout"
        error = task.exception()
        if error is None:
            return task.result()
        if isinstance(error, TimeoutError):
            return "timeout"
        if not isinstance(error, ShardUnavailableError):
            logger.error("shard %d of the index %s failed", shard, self.fan_out.name, exc_info=error)
        return "unavailable"

    def merged(self, answers: Sequence[list[ShardHits] | Missing], deadline: Deadline) -> bytes | ToShards:
        """Go on with the merged results (blocking).

        Raises:
            ApiError: 503 or 504 if a shard has not answered, unless a part of the results will do and there is any.
        """
        missing: dict[int, Missing] = {
            shard: answer for shard, answer in enumerate(answers) if not isinstance(answer, list)
        }
        # A shard that has failed is the reason why others were not waited for.
        for shard in sorted(missing, key=lambda shard: missing[shard] == "timeout"):
            if not self.allows_partial or len(missing) == len(answers):
                raise self._not_answered(shard, missing[shard])
        with deadline.stage("merge"):
            index = self.fan_out.index
            found = [
                [of_query for hits in answer for of_query in hits.of_queries()]
                if isinstance(answer, list)
                else None
                for answer in answers
            ]
            merged = index.merged(found, self.k)
            hits = index.hits(merged, [[] for _ in merged])
        return self.finish(FromShards(hits, missing))

    def _not_answered(self, shard: int, why: Missing) -> ApiError:
        where = f"shard {shard} of the index {self.fan_out.name}"
        remedy = "try again later, or take what the others find with allow_partial"
        if why == "timeout":
            return ApiError(504, "shard_timeout", f"{where} has not answered in time; {remedy}")
        return ApiError(503, "shard_unavailable", f"{where} cannot answer now; {remedy}", headers=RETRY)


def cut(vectors: SparseActivations, k: int) -> Iterator[SparseActivations]:
    """Queries in pieces that fit into messages, as do their results; one alone may be too large."""
    start = 0
    while start < len(vectors):
        fitting = np.searchsorted(vectors.indptr, vectors.indptr[start] + PIECE_POSTINGS, side="right") - 1
        end = min(max(int(fitting), start + 1), start + max(1, PIECE_RESULTS // k), len(vectors))
        yield vectors[start:end]
        start = end


def too_large(name: str, what: str, param: str | None) -> ApiError:
    return ApiError(
        422,
        "invalid_value",
        f"{name} is a sharded index, and {what} would take more than the {MESSAGE_BYTES / (1 << 20):g} MiB that its "
        "shards are asked with at once",
        param,
    )
