"""A generator that says what it is told to, so that a test knows the text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moe.generation.engine import Event, Request, Usage
from moe.generation.engine.engine import EngineState
from runtime.meter import ActivityMeter


class Words:
    """A tokenizer whose tokens are letters."""

    chat_template = None
    all_special_tokens = ("<end>",)
    added_tokens_decoder: Mapping[int, Any] = {}

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:  # noqa: ARG002
        return {"input_ids": [ord(letter) for letter in text]}


@dataclass
class ScriptedStream:
    """Events of one request; `was_cancelled` tells whether its reader ended it."""

    pieces: Sequence[str | Exception]
    prompt: int
    pause: asyncio.Event
    is_cancelled: bool = False

    async def __aiter__(self) -> AsyncIterator[Event]:
        for place, piece in enumerate(self.pieces):
            if isinstance(piece, Exception):
                raise piece
            if piece == "…":
                await self.pause.wait()
            is_last = place == len(self.pieces) - 1
            usage = Usage(self.prompt, 0, len(self.pieces)) if is_last else None
            yield Event(0, place, piece, finish="end" if is_last else None, usage=usage)

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass
class ScriptedGenerator:
    """Says `pieces` to every prompt, and keeps what it was asked."""

    name: str = "scripted"
    pieces: Sequence[str | Exception] = ()
    context: int = 4096
    asked: list[Request] = field(default_factory=list)
    streams: list[ScriptedStream] = field(default_factory=list)
    tokenizer: Any = field(default_factory=Words)
    refusal: Exception | None = None

    async def about(self) -> tuple[int, int]:
        return 0, self.context

    async def submit(self, request: Request) -> ScriptedStream:
        if self.refusal is not None:
            raise self.refusal
        self.asked.append(request)
        self.streams.append(ScriptedStream(self.pieces, len(request.prompt), asyncio.Event()))
        return self.streams[-1]

    async def routing(self, window_s: float) -> Mapping[str, ActivityMeter]:  # noqa: ARG002
        return {}

    async def state(self) -> EngineState:
        raise NotImplementedError

    def close(self) -> None:
        pass

    @property
    def prompts(self) -> list[str]:
        """The texts of what it was asked."""
        return ["".join(map(chr, request.prompt)) for request in self.asked]
