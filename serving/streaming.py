"""Answers that are sent piece by piece, as server-sent events, until they end or the client goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson

from runtime.errors import LexpertError
from serving.asgi import ClientGoneError, Header, Request, Send
from serving.errors import ApiError, from_library, internal_error
from serving.request_identity import REQUEST_ID

Result = TypeVar("Result")

DONE = b"data: [DONE]\n\n"
"""The end of a stream, by which OpenAI's clients know that it is whole."""


def server_sent_event(value: Any) -> bytes:
    """A value as the data of an event."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


def named_event(name: str, value: Any) -> bytes:
    """The same for an event with a name."""
    return b"event: " + name.encode() + b"\n" + server_sent_event(value)


async def gone(request: Request) -> None:
    """Return when the client has closed the connection; its body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` returns; cancels it when the client goes.

    Raises:
        ClientGoneError: the client went first.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class StreamingResponse:
    """Status 200 and server-sent events.

    The status is sent with the first piece: what fails before it is an answer of its own. What fails later becomes an
    event with the error, and the stream ends without `DONE`.

    Attributes:
        pieces: each sent as it comes; closed when the client goes.
        first: the piece that was waited for.
        failed: told of faults of ours, which the answer says nothing about.
    """

    pieces: AsyncGenerator[bytes, None]
    first: bytes
    failed: Callable[[Exception], None]
    headers: tuple[Header, ...] = ()
    status: int = 200

    @classmethod
    async def started(
        cls, pieces: AsyncGenerator[bytes, None], failed: Callable[[Exception], None]
    ) -> StreamingResponse:
        """Wait for the first piece, and raise what stands in its place."""
        return cls(pieces, await anext(pieces, b""), failed)

    async def send(self, request: Request, send: Send) -> None:
        """Send until the end; when the client goes, `pieces` are closed at once, wherever they wait."""
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            (b"x-content-type-options", b"nosniff"),
            *self.headers,
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        sending = asyncio.ensure_future(self._send_pieces(request, send))
        leaving = asyncio.ensure_future(gone(request))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving):
                task.cancel()
            with suppress(asyncio.CancelledError):
                await sending
            await self.pieces.aclose()

    async def _send_pieces(self, request: Request, send: Send) -> None:
        await send({"type": "http.response.body", "body": self.first, "more_body": True})
        try:
            async for piece in self.pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except (LexpertError, ApiError) as error:
            told = error if isinstance(error, ApiError) else from_library(error)
            await self._send_error(told, request, send)
        except Exception as error:
            self.failed(error)
            await self._send_error(internal_error(), request, send)
        await send({"type": "http.response.body", "body": b""})

    async def _send_error(self, error: ApiError, request: Request, send: Send) -> None:
        body = b"data: " + error.body(request.header(REQUEST_ID)) + b"\n\n"
        await send({"type": "http.response.body", "body": body, "more_body": True})
