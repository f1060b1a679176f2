"""The outermost layer of the application: one request id on every answer, one shape for every error.

Ray Serve answers some requests itself (a full queue, a time limit, a crash), in plain text and partly without
an id. This layer wraps Serve's own handling and gives those answers the API's form.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from uuid import uuid4

from serving.asgi import Application, Header, Message, Receive, Scope, Send
from serving.errors import RETRY, error_body

if TYPE_CHECKING:
    from starlette.middleware import Middleware

REQUEST_ID = b"x-request-id"
USABLE_ID = re.compile(rb"[\x21-\x7e]{1,128}")

SERVE_ANSWERS = {
    400: ("malformed_request", "this is not HTTP"),
    404: ("route_not_found", "there is no such path on this server"),
    408: ("timeout", "the request took longer than this server allows"),
    429: ("overloaded", "the server has as many requests waiting as it takes; try again later"),
    503: ("not_ready", "the server is not ready; try again shortly"),
}


SERVE_OPTIONS = {b"x-request-timeout-seconds", b"x-request-disconnect-disabled"}
"""Request headers by which a client could change how Serve treats its request; the API has no such options."""


class RequestIdentity:
    """ASGI middleware: takes or makes the request id, and mends answers that are not ours."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request_id = usable_request_id(scope["headers"])
        if scope["type"] == "websocket":
            await refuse_websocket(scope, send, request_id)
            return
        scope["headers"] = [
            *((name, value) for name, value in scope["headers"] if name not in {REQUEST_ID, *SERVE_OPTIONS}),
            (REQUEST_ID, request_id),
        ]
        answer = _Answer(request_id, send)
        await self._app(scope, receive, answer.pass_on)


class _Answer:
    """Passes one answer on, with its header section completed and a foreign error body replaced."""

    def __init__(self, request_id: bytes, send: Send) -> None:
        self._request_id = request_id
        self._send = send
        self._is_foreign = False

    async def pass_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [(name, value) for name, value in message["headers"] if name.lower() != REQUEST_ID]
            self._is_foreign = message["status"] >= 400 and not is_json(headers)
            if self._is_foreign:
                await self._send_replacement(message["status"], headers)
            else:
                await self._send({**message, "headers": [*headers, (REQUEST_ID, self._request_id)]})
        elif not self._is_foreign:
            await self._send(message)

    async def _send_replacement(self, status: int, headers: list[Header]) -> None:
        code, text = SERVE_ANSWERS.get(status, ("internal_error", "the server failed on this request"))
        body = error_body(status, code, text, request_id=self._request_id.decode())
        kept = [(name, value) for name, value in headers if name.lower() == b"retry-after"]
        if status in (429, 503) and not kept:
            kept = [*RETRY]
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    (b"content-type", b"application/json"),
                    (b"content-length", b"%d" % len(body)),
                    *kept,
                    (REQUEST_ID, self._request_id),
                ],
            }
        )
        await self._send({"type": "http.response.body", "body": body})


async def refuse_websocket(scope: Scope, send: Send, request_id: bytes) -> None:
    """There is nothing here that a websocket could connect to."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008})
        return
    message = "there is no websocket on this server"
    body = error_body(404, "route_not_found", message, request_id=request_id.decode())
    headers = [(b"content-type", b"application/json"), (REQUEST_ID, request_id)]
    await send({"type": "websocket.http.response.start", "status": 404, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


def usable_request_id(headers: list[Header]) -> bytes:
    """The client's request id if it is 1 to 128 printable ASCII characters and no space, else a new one."""
    for name, value in headers:
        if name == REQUEST_ID and USABLE_ID.fullmatch(value):
            return value
    return uuid4().hex.encode()


def is_json(headers: list[Header]) -> bool:
    return any(name.lower() == b"content-type" and value == b"application/json" for name, value in headers)


def serve_middlewares() -> list[Middleware]:
    """What Ray Serve is told (by import path) to wrap around its own handling of HTTP."""
    from starlette.middleware import Middleware

    return [Middleware(RequestIdentity)]
