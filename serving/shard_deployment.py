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

OTHER_REPLICA_S = 0.5
"""How long a search waits for another replica to show up when the one that it was sent to has ended."""


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

    A shard whose process has ended is asked no more until it is there again, so that searches need not wait to be told.
    """

    def __init__(self, name: str, num_shards: int) -> None:
        self._name = name
        self._handles: list[Any] = [None] * num_shards
        self._returning: list[asyncio.Task[None] | None] = [None] * num_shards

    async def search(self, shard: int, asked: ShardQueries) -> ShardHits:
        if self._is_gone(shard):
            raise ShardUnavailableError
        try:
            return await self._ask(shard, asked)
        except ShardUnavailableError:
            returning = self._returning[shard] = asyncio.create_task(self._return(shard))
            # Where a shard has several replicas there is another one at once.
            await asyncio.wait([returning], timeout=min(OTHER_REPLICA_S, asked.timeout_s))
            if self._is_gone(shard):
                raise
            return await self._ask(shard, asked)

    def close(self) -> None:
        """The deployments end with the server."""

    def _is_gone(self, shard: int) -> bool:
        returning = self._returning[shard]
        return returning is not None and not returning.done()

    async def _ask(self, shard: int, asked: ShardQueries) -> ShardHits:
        from ray.exceptions import RayError

        answer = self._handle(shard).search.remote(asked)
        try:
            found: ShardHits | None = await answer
        except RayError as error:
            raise ShardUnavailableError from error
        except asyncio.CancelledError:
            answer.cancel()
            raise
        if found is None:
            raise TimeoutError
        return found

    async def _return(self, shard: int) -> None:
        """Wait until a replica answers."""
        from ray.exceptions import RayError

        while True:
            try:
                await self._handle(shard).is_there.remote()
                return
            except RayError:
                await asyncio.sleep(0.1)

    def _handle(self, shard: int) -> Any:
        from ray import serve

        if self._handles[shard] is None:
            self._handles[shard] = serve.get_deployment_handle(deployment_of(self._name, shard))
        return self._handles[shard]
