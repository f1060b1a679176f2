"""Shards as deployments of Ray Serve, each with replicas of its own, and how replicas of the API ask them."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from serving.configuration import ServerConfiguration
from serving.ray_environment import Place
from serving.shards import ShardHits, ShardQueries, ShardUnavailableError, search_shard

logger = logging.getLogger("serving")

DOUBT_S = 0.3
"""How long a question may take before it is asked whether anybody is there."""

LOOK_S = 1.0
"""How long that may take."""


def deployment_of(index: str, shard: int) -> str:
    """The name of the deployment that has a shard of an index."""
    return f"shard-{index}-{shard}"


def number_of_shards(folder: Path) -> int:
    """How many deployments the shards of an index take.

    Raises:
        NotFoundError, FormatError: it is no sharded index, or damaged.
    """
    from retrieval.index.shards_manifest import read_shards_manifest

    return len(read_shards_manifest(folder).shards)


def check_shards(configuration: ServerConfiguration) -> None:
    """Look at every index whose shards have processes of their own; raises as `number_of_shards` does."""
    for name in configuration.shards:
        number_of_shards(configuration.indexes[name])


class ShardReplica:
    """Holds a shard.

    Args:
        folder: of the whole index.
        threads: searches that run at the same time.
        place: where it runs.
    """

    def __init__(self, folder: Path, shard: int, threads: int, place: Place) -> None:
        from retrieval.index.sharded_index import open_shard

        place.prepare()
        self._index = open_shard(folder, shard, warm=True)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="shard")

    async def search(self, asked: ShardQueries) -> ShardHits | None:
        """What the shard finds; None when there is no time left."""
        work = partial(search_shard, self._index, asked, time.monotonic() + asked.timeout_s, 1)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except TimeoutError:
            return None

    async def is_there(self) -> bool:
        return True


class RemoteShards:
    """`Shards` by way of the deployments.

    Ray lets a question wait where there is no process to answer it. So one that is not answered soon is followed by
    asking whether anybody is there, which a process answers whatever it is at. A shard without anybody is not asked
    again until a new process says that it is there: searches are told at once.
    """

    def __init__(self, name: str, num_shards: int) -> None:
        self._name = name
        self._handles: list[Any] = [None] * num_shards
        self._looking: list[asyncio.Task[None] | None] = [None] * num_shards
        self._gone: set[int] = set()

    async def search(self, shard: int, asked: ShardQueries) -> ShardHits:
        from ray.exceptions import RayError

        if shard in self._gone:
            raise ShardUnavailableError
        asking = asyncio.create_task(self._ask(shard, asked))
        try:
            await asyncio.wait([asking], timeout=DOUBT_S)
            if not asking.done():
                await self._look(shard, asking)
            return await asking
        except RayError:  # the process has ended; where a shard has several there is another one
            await self._look(shard)
        finally:
            asking.cancel()
        try:
            return await self._ask(shard, asked)
        except RayError as error:
            raise ShardUnavailableError from error

    def close(self) -> None:
        """The deployments end with the server."""

    async def _ask(self, shard: int, asked: ShardQueries) -> ShardHits:
        answer = self._handle(shard).search.remote(asked)
        try:
            found: ShardHits | None = await answer
        except asyncio.CancelledError:
            answer.cancel()
            raise
        if found is None:
            raise TimeoutError
        return found

    async def _look(self, shard: int, *answers: asyncio.Task[ShardHits]) -> None:
        """Return if there is a process, or one of some answers; raise ShardUnavailableError if neither comes soon."""
        looking = self._looking[shard]
        if looking is None or looking.done():
            looking = self._looking[shard] = asyncio.create_task(self._find(shard))
        done, _ = await asyncio.wait([looking, *answers], timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            if shard not in self._gone:
                logger.warning("shard %d of the index %s is gone; waiting for it", shard, self._name)
            self._gone.add(shard)
            raise ShardUnavailableError

    async def _find(self, shard: int) -> None:
        """Wait until a process answers."""
        from ray.exceptions import RayError

        while True:
            try:
                await self._handle(shard).is_there.remote()
            except RayError:
                await asyncio.sleep(0.1)
            else:
                self._gone.discard(shard)
                return

    def _handle(self, shard: int) -> Any:
        from ray import serve

        if self._handles[shard] is None:
            self._handles[shard] = serve.get_deployment_handle(deployment_of(self._name, shard))
        return self._handles[shard]
