"""The small part of ASGI that the routes need: requests, prebuilt answers, and matching paths.

Raw ASGI rather than a framework: behind the same proxy, a framework's handling of one request cost more than
a search does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message as HeaderSection
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import parse_qsl

import orjson

from serving.deadline import Interval
from serving.description import Description
from serving.errors import ApiError
from serving.keys import RouteScope

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

Header = tuple[bytes, bytes]
State = TypeVar("State")


UNREAD_S = 5.0
"""How long a body that nobody wants is taken in after its answer. A time and no length: clients that send all of
it before they read come to their end, and nothing of it is kept."""


SLOWEST = 1024
"""Bytes a second that a stream must come with, on average and beyond the time that any body has."""


class ClientGoneError(Exception):
    """The client closed the connection before its request was complete; nobody waits for an answer."""


@dataclass(slots=True)
class Request:
    """One HTTP request.

    Attributes:
        path_parameters: the values of ``{name}`` in the path of `route`.
        intervals: the stages of the work on it so far.
    """

    scope: Scope
    receive: Receive
    route: str = ""
    path_parameters: dict[str, str] = field(default_factory=dict)
    intervals: list[Interval] = field(default_factory=list)
    _is_read: bool = False

    @contextmanager
    def interval(self, name: str) -> Iterator[None]:
        """Note what is done within as a stage of the work."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.intervals.append(Interval(name, began, time.perf_counter()))

    def header(self, name: bytes) -> str | None:
        """The value of a header (name in lower case), or None."""
        for key, value in self.scope["headers"]:
            if key == name:
                return str(value.decode("latin-1"))
        return None

    def refuse_query_parameters(self) -> None:
        """Raise a 400 if the URL has a query: nothing here takes one, and nothing is ignored in silence."""
        query = self.scope.get("query_string", b"").decode("latin-1")
        if query:
            pairs = parse_qsl(query, keep_blank_values=True)
            param = pairs[0][0] if pairs else query
            raise ApiError(
                400, "unknown_parameter", f"there is no parameter {param} in the URL of this route", param
            )

    def query_parameters(self, *known: str) -> dict[str, str]:
        """The parameters of the URL; 400 for one that is not among `known`, or given twice."""
        query = self.scope.get("query_string", b"").decode("latin-1")
        parameters: dict[str, str] = {}
        for name, value in parse_qsl(query, keep_blank_values=True):
            if name not in known or name in parameters:
                fault = "is given twice" if name in parameters else "is none of this route"
                raise ApiError(
                    400,
                    "unknown_parameter",
                    f"the parameter {name} of the URL {fault}; it takes {', '.join(known)}",
                    name,
                )
            parameters[name] = value
        return parameters

    async def body_pieces(self, timeout_s: float) -> AsyncIterator[bytes]:
        """The body piece by piece; no more is taken from the socket than is asked for.

        Raises:
            ApiError: 408 if waiting for it has taken more than `timeout_s`, and a second for each `SLOWEST` bytes.
            ClientGoneError: the client closed the connection before the end.
        """
        waited, received = 0.0, 0
        while not self._is_read:
            began = time.monotonic()
            try:
                async with asyncio.timeout(timeout_s + received / SLOWEST - waited):
                    message = await self.receive()
            except TimeoutError:
                raise ApiError(
                    408, "timeout", f"the body came too slowly: {received:,} bytes so far; send it faster"
                ) from None
            waited += time.monotonic() - began
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            piece = message.get("body", b"")
            received += len(piece)
            self._is_read = not message.get("more_body", False)
            if piece:
                yield piece

    async def json_body(self, max_bytes: int, timeout_s: float) -> bytes:
        """The bytes of a JSON body, not yet parsed.

        Raises:
            ApiError: 415 unless it is said to be plain JSON in UTF-8, 413 if it is longer than `max_bytes`,
                408 if it has not come after `timeout_s` seconds.
            ClientGoneError: nor will it ever.
        """
        require_json(self.header(b"content-type"), self.header(b"content-encoding"))
        declared = self.header(b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > max_bytes:
            raise too_large(max_bytes)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._body(max_bytes)
        except TimeoutError:
            raise ApiError(
                408,
                "timeout",
                f"the body did not come to its end within {timeout_s:g} s; send it faster, or less of it",
            ) from None

    async def _body(self, max_bytes: int) -> bytes:
        chunks = bytearray()
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            chunks += message.get("body", b"")
            self._is_read = not message.get("more_body", False)
            if len(chunks) > max_bytes:
                raise too_large(max_bytes)
            if self._is_read:
                return bytes(chunks)

    def has_unread_body(self) -> bool:
        """Whether a body was announced and not read to its end."""
        if self._is_read:
            return False
        length, encoding = self.header(b"content-length"), self.header(b"transfer-encoding")
        return length not in (None, "0") or encoding is not None

    async def discard_body(self, timeout_s: float) -> None:
        """Read on and keep nothing, until the body ends, the client goes or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self._is_read:
                    message = await self.receive()
                    self._is_read = not message.get("more_body", False)


def require_json(content_type: str | None, content_encoding: str | None) -> None:
    """Raise a 415 unless the headers say uncompressed JSON in UTF-8.

    A missing type is refused too: that is what a page in a browser can send to this machine without asking.
    """
    if not content_type:
        raise ApiError(
            415,
            "unsupported_media_type",
            "the body came without a content-type; send content-type: application/json",
        )
    if content_type != "application/json" and not is_json_in_utf8(content_type):
        raise ApiError(
            415,
            "unsupported_media_type",
            f"the body must come with content-type: application/json, in UTF-8, not {content_type}",
        )
    require_uncompressed(content_encoding)


def require_uncompressed(content_encoding: str | None) -> None:
    """Raise a 415 if a body comes compressed."""
    if content_encoding is not None and content_encoding.strip().lower() != "identity":
        raise ApiError(415, "unsupported_media_type", f"the body must not be compressed ({content_encoding})")


def is_json_in_utf8(content_type: str) -> bool:
    """Whether a content type, with any parameters that it may have, is JSON in UTF-8."""
    header = HeaderSection()
    header["content-type"] = content_type
    charset = header.get_param("charset", "utf-8")
    return header.get_content_type() == "application/json" and str(charset).lower() in ("utf-8", "utf8")


def too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413,
        "body_too_large",
        f"the body is longer than the {max_bytes:,} bytes that this server takes; split the request",
    )


@dataclass(frozen=True, slots=True)
class Response:
    """A status and prebuilt bytes."""

    status: int
    body: bytes
    headers: tuple[Header, ...] = ()
    content_type: bytes = b"application/json"

    @classmethod
    def json(cls, value: Any, status: int = 200) -> Response:
        return cls(status, orjson.dumps(value))

    async def send(self, request: Request, send: Send) -> None:
        """Answer a request, also one whose body is not read to its end.

        A connection that is closed while data comes in is reset, and a proxy or client that still sends may then
        lose what it has not read of the answer. So the whole answer goes out at once, but the response ends,
        and with it the connection, only when the rest of the body has come and is thrown away.
        """
        is_unread = request.has_unread_body()
        headers = [
            (b"content-type", self.content_type),
            (b"content-length", b"%d" % len(self.body)),
            (b"x-content-type-options", b"nosniff"),
            *self.headers,
        ]
        if is_unread:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        body = b"" if request.scope["method"] == "HEAD" else self.body
        await send({"type": "http.response.body", "body": body, "more_body": is_unread})
        if is_unread:
            await request.discard_body(UNREAD_S)
            await send({"type": "http.response.body", "body": b""})


class Answer(Protocol):
    """What a handler returns: a `Response`, or one that comes piece by piece."""

    @property
    def status(self) -> int: ...

    async def send(self, request: Request, send: Send) -> None:
        """Send all of it."""
        ...


Handler = Callable[[State, Request], Awaitable[Answer]]


@dataclass(frozen=True)
class Route(Generic[State]):
    """One method on one path; a part of the path in braces matches any one part, ``{name*}`` at its end any rest.

    `scope` is what a key must allow.
    """

    method: str
    path: str
    handler: Handler[State]
    scope: RouteScope
    description: Description | None = None


class Router(Generic[State]):
    """Finds the route of a path and method."""

    def __init__(self, routes: Iterable[Route[State]]) -> None:
        by_path: dict[tuple[str, ...], dict[str, Route[State]]] = {}
        for route in routes:
            by_path.setdefault(tuple(route.path.split("/")), {})[route.method] = route
        # By the number of parts that a path has, of which those beyond the longest template are all alike.
        self._longest = 1 + max(map(len, by_path), default=0)
        self._by_length = [
            [(template, of) for template, of in by_path.items() if may_have(template, length)]
            for length in range(self._longest + 1)
        ]

    def find(self, method: str, path: str) -> tuple[Route[State], dict[str, str]]:
        """The route and the path's parameters.

        Raises:
            ApiError: 404 for a path that no route has, 405 (with Allow) for a method that the path has not.
        """
        parts = tuple(path.split("/"))
        methods: set[str] = set()
        for template, routes in self._by_length[min(len(parts), self._longest)]:
            parameters = match(template, parts)
            if parameters is not None:
                route = routes.get("GET" if method == "HEAD" else method)
                if route is not None:
                    return route, parameters
                methods |= {*routes, *(["HEAD"] if "GET" in routes else [])}
        if methods:
            allowed = ", ".join(sorted(methods))
            raise ApiError(
                405,
                "method_not_allowed",
                f"{path} takes {allowed}, not {method}",
                headers=[(b"allow", allowed.encode())],
            )
        raise ApiError(404, "route_not_found", f"there is no {path} on this server")


def may_have(template: tuple[str, ...], length: int) -> bool:
    """Whether paths of so many parts can match the template."""
    return len(template) == length or (template[-1].endswith("*}") and len(template) < length)


def match(template: tuple[str, ...], parts: tuple[str, ...]) -> dict[str, str] | None:
    """The values of the template's parameters in a split path, or None if it is another path."""
    if template[-1].endswith("*}") and len(parts) >= len(template):
        parts = (*parts[: len(template) - 1], "/".join(parts[len(template) - 1 :]))
    if len(template) != len(parts):
        return None
    parameters = {}
    for expected, part in zip(template, parts, strict=True):
        if expected.startswith("{") and part:
            parameters[expected.strip("{*}")] = part
        elif expected != part:
            return None
    return parameters
