"""Generators as the routes see them: an engine in this process, or one behind a deployment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from moe.generation.engine import Engine, Event, Request
    from moe.generation.engine.engine import EngineState
    from runtime.meter import ActivityMeter


class Stream(Protocol):
    """The events of one request."""

    def __aiter__(self) -> AsyncIterator[Event]:
        """Events until all choices have ended."""
        ...

    def cancel(self) -> None:
        """End it; also when it has ended."""
        ...


class Generator(Protocol):
    """A model that continues prompts for many requests at once.

    Attributes:
        name: in URLs and requests.
    """

    @property
    def name(self) -> str: ...

    @property
    def tokenizer(self) -> Any:
        """Of transformers."""
        ...

    async def about(self) -> tuple[int, int]:
        """When it was opened, in seconds since 1970, and most tokens of a prompt and what follows it together."""
        ...

    async def submit(self, request: Request) -> Stream:
        """Put a request into the queue.

        Raises:
            UsageError: it cannot be honoured.
            QueueFullError: too many wait.
        """
        ...

    async def routing(self, window_s: float) -> Mapping[str, ActivityMeter]:
        """The load of the experts of each layer in the last seconds."""
        ...

    async def state(self) -> EngineState:
        """What it does at this moment."""
        ...

    def close(self) -> None:
        """End all requests (blocking)."""
        ...


@dataclass(frozen=True)
class LocalGenerator:
    """An engine of this process."""

    name: str
    engine: Engine
    created: int

    @classmethod
    def open(cls, name: str, folder: Path) -> LocalGenerator:
        """Load a folder, and raise what `Engine.open` raises."""
        import time

        from moe.generation.engine import Engine

        return cls(name, Engine.open(folder), int(time.time()))

    @property
    def tokenizer(self) -> Any:
        return self.engine.tokenizer

    async def about(self) -> tuple[int, int]:
        return self.created, self.engine.context

    async def submit(self, request: Request) -> Stream:
        return self.engine.submit(request)

    async def routing(self, window_s: float) -> Mapping[str, ActivityMeter]:
        return await asyncio.to_thread(self.engine.routing.meters, window_s)

    async def state(self) -> EngineState:
        return await asyncio.to_thread(self.engine.state)

    def close(self) -> None:
        self.engine.close()


async def collect(stream: Stream) -> list[Event]:
    """All events; cancels the request where its reader is cancelled."""
    try:
        return [event async for event in stream]
    except asyncio.CancelledError:
        stream.cancel()
        raise
