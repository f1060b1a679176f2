"""An engine as a deployment of Ray Serve with one replica, and how replicas of the API ask it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.cores import available_cores
from runtime.errors import LexpertError
from serving.errors import RETRY, ApiError
from serving.generation import LocalGenerator, Stream
from serving.ray_environment import Place

if TYPE_CHECKING:
    from moe.generation.engine import Event, Request
    from moe.generation.engine.engine import EngineState
    from runtime.meter import ActivityMeter


def deployment_of(model: str) -> str:
    """The name of the deployment that holds a model."""
    return f"generator-{model}"


class GeneratorReplica:
    """Holds a model.

    Args:
        name: of the model.
        folder: of the model.
        place: where it runs.
    """

    def __init__(self, name: str, folder: Path, place: Place) -> None:
        import torch

        place.prepare()
        if place.log_file is not None:
            torch.set_num_threads(available_cores())  # Ray would give it one
        self._generator = LocalGenerator.open(name, folder)

    async def about(self) -> tuple[int, int]:
        return await self._generator.about()

    async def generate(self, request: Request) -> AsyncIterator[Any]:
        """First None, or the error in place of all else; then lists of events. Ends the request when it is closed."""
        try:
            submitted = self._generator.engine.submit(request)
        except LexpertError as error:
            yield error
            return
        try:
            yield None
            async for events in submitted.batches():
                yield events
        except LexpertError as error:
            yield error
        finally:
            submitted.cancel()

    async def routing(self, window_s: float) -> Mapping[str, ActivityMeter]:
        return await self._generator.routing(window_s)

    async def state(self) -> EngineState:
        return await self._generator.state()

    async def __del__(self) -> None:
        """Called by Serve when the replica stops in order."""
        generator = getattr(self, "_generator", None)
        if generator is not None:
            await asyncio.to_thread(generator.close)


@dataclass(frozen=True)
class RemoteGenerator:
    """`Generator` by way of the deployment; the tokenizer is here too."""

    name: str
    tokenizer: Any
    handle: Any

    @classmethod
    def open(cls, name: str, folder: Path) -> RemoteGenerator:
        """Find the deployment of a model (blocking)."""
        import transformers
        from ray import serve

        handle = serve.get_deployment_handle(deployment_of(name))
        return cls(name, transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True), handle)

    async def about(self) -> tuple[int, int]:
        about: tuple[int, int] = await self.handle.about.remote()
        return about

    async def submit(self, request: Request) -> Stream:
        stream = RemoteStream(self.handle.options(stream=True).generate.remote(request))
        await stream.accepted()
        return stream

    async def routing(self, window_s: float) -> Mapping[str, ActivityMeter]:
        with_load: Mapping[str, ActivityMeter] = await self.handle.routing.remote(window_s)
        return with_load

    async def state(self) -> EngineState:
        state: EngineState = await self.handle.state.remote()
        return state

    def close(self) -> None:
        """The deployment ends with the server."""


class RemoteStream:
    """What `GeneratorReplica.generate` gives, as events."""

    def __init__(self, answers: Any) -> None:
        self._answers = answers

    async def accepted(self) -> None:
        """Wait until the request is in the queue, and raise what refused it."""
        await self._next()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (events := await self._next()) is not None:
            for event in events:
                yield event

    def cancel(self) -> None:
        self._answers.cancel()

    async def _next(self) -> Any:
        from ray.exceptions import RayError

        try:
            answer = await anext(self._answers, None)
        except RayError as error:
            raise ApiError(
                503,
                "not_ready",
                "the process of the model has ended and is being started again; try again shortly",
                headers=RETRY,
            ) from error
        if isinstance(answer, Exception):
            raise answer
        return answer
