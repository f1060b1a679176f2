"""The process that writes, as a deployment of Ray Serve with one replica, and how replicas of the API ask it."""

from __future__ import annotations

import asyncio
from typing import Any

from serving.configuration import ServerConfiguration
from serving.errors import RETRY, ApiError
from serving.indexes.known_answers import KnownAnswer
from serving.indexes.live_index import Operation
from serving.indexes.writers import NewIndex, Writers
from serving.indexes.writing import LocalWriting, Written
from serving.ray_environment import Place

WRITER = "writer"


class WriterReplica:
    """Owns all writers.

    Args:
        configuration: of the server.
        place: where it runs.
    """

    def __init__(self, configuration: ServerConfiguration, place: Place) -> None:
        place.prepare()
        self._writers = Writers(configuration)
        self._writers.open()
        self._writing = LocalWriting(self._writers)

    async def call(self, method: str, *arguments: Any) -> tuple[bool, Any]:
        """``(True, result)`` of a method of `Writing`, or ``(False, parts of its ApiError)``: Ray would change it."""
        try:
            return True, await getattr(self._writing, method)(*arguments)
        except ApiError as error:
            return False, (error.status, error.code, error.message, error.param, error.headers)

    async def __del__(self) -> None:
        """Called by Serve when the replica stops in order; what it cannot finish is in the logs."""
        writers = getattr(self, "_writers", None)
        if writers is not None:
            await asyncio.to_thread(writers.close)


class RemoteWriting:
    """`Writing` by way of the deployment."""

    def __init__(self) -> None:
        self._handle: Any = None

    async def started(self) -> None:
        await self._call("started")

    async def create(self, name: str, new: NewIndex) -> bool:
        return bool(await self._call("create", name, new))

    async def delete(self, name: str) -> None:
        await self._call("delete", name)

    async def set_aliases(self, changes: dict[str, str | None]) -> dict[str, str]:
        aliases: dict[str, str] = await self._call("set_aliases", changes)
        return aliases

    async def snapshot(self, name: str, uid: str) -> dict[str, Any]:
        made: dict[str, Any] = await self._call("snapshot", name, uid)
        return made

    async def pending(self, name: str, uid: str) -> dict[str, int]:
        pending: dict[str, int] = await self._call("pending", name, uid)
        return pending

    async def knows(self, name: str, uid: str, key: str) -> bool:
        return bool(await self._call("knows", name, uid, key))

    async def write(
        self, name: str, uid: str, operation: Operation, known: KnownAnswer | None, commit_s: float
    ) -> Written:
        written: Written = await self._call("write", name, uid, operation, known, commit_s)
        return written

    async def _call(self, method: str, *arguments: Any) -> Any:
        from ray import serve
        from ray.exceptions import RayError

        if self._handle is None:
            self._handle = serve.get_deployment_handle(WRITER)
        try:
            is_done, result = await self._handle.call.remote(method, *arguments)
        except RayError as error:
            raise ApiError(
                503,
                "not_ready",
                "the process that writes has ended and is being started again; try again shortly, with the same "
                "Idempotency-Key if there was one",
                headers=RETRY,
            ) from error
        if not is_done:
            raise ApiError(*result)
        return result
