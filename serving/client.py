"""A client of a server, for programs: it asks again where that can do no harm and may help."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self
from urllib.parse import quote, urlsplit
from uuid import uuid4

import orjson

from runtime.errors import LexpertError, UsageError

DEADLINE_S = 60.0
ATTEMPT_S = 30.0
"""How long one answer is waited for."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0
"""Between two attempts, where the server does not say how long; each is about twice the one before."""

BUSY = frozenset({429, 502, 503})
"""Answers of a server that would give another one later."""

FAILURES = 3
"""So many answers 500 are taken as what a process left that died in between; then they are believed."""

PIECE_BYTES = 2 << 20
"""Of the documents that are written with one request, unless one is longer."""

Json = dict[str, Any]


class ServerError(LexpertError):
    """The server refused a request, or could not be reached in time.

    Attributes:
        status: of the answer; 0 where none came.
        code, param, request_id: as in the answer, if it has them.
    """

    def __init__(self, message: str, status: int = 0, body: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code, self.param, self.request_id = (
            (body or {}).get(name) for name in ("code", "param", "request_id")
        )


class Client:
    """Asks a server; threads may share one, and each has connections of its own.

    Every method may be sent again without harm: reading changes nothing, and writes have an idempotency key. So after
    a dropped connection or an answer 429, 502 or 503 a request is sent again, when the server says, until the deadline.

    Args:
        url: of the server, as ``http://127.0.0.1:8000``.
        key: for servers that ask for one.
        deadline_s: for each call, with all its attempts and the pauses between them.

    Raises:
        UsageError: the URL is none.
    """

    def __init__(self, url: str, key: str | None = None, deadline_s: float = DEADLINE_S) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url!r} is no URL of a server; give one as http://127.0.0.1:8000")
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._base = parts.hostname, parts.port, parts.path.rstrip("/")
        self._headers = {"content-type": "application/json"}
        if key is not None:
            self._headers["authorization"] = f"Bearer {key}"
        self._deadline_s = deadline_s
        self._of_thread = threading.local()

    def search(self, index: str, query: str | Sequence[str] | Mapping[str, Any], **how: Any) -> Json:
        """Search an index: a text, several, or one vector; ``how`` is the rest of the body, as ``k=10``.

        Raises:
            ServerError: the server refused, or could not be reached in time.
        """
        form = "query" if isinstance(query, str) else "vector" if isinstance(query, Mapping) else "queries"
        return self.post(f"/v1/indexes/{quote(index, safe='')}/search", {form: query, **how})

    def encode(self, model: str, texts: str | Sequence[str], **how: Any) -> list[Json]:
        """Sparse vectors of texts, in their order: objects with ``indices`` and ``values``.

        Raises:
            ServerError: the server refused, or could not be reached in time.
        """
        data: list[Json] = self.post("/v1/encode", {"model": model, "input": texts, **how})["data"]
        return data

    def upsert(
        self, index: str, documents: Iterable[Mapping[str, Any]], *, wait: bool = True, key: str | None = None
    ) -> Json:
        """Write documents, some megabytes with a request.

        Args:
            wait: whether searches find them when this returns; if not, they are only safe.
            key: an idempotency key, for a call that may be made again; one is made if it is left out.

        Returns:
            The last answer, with ``upserted`` and ``errors`` of all of them.

        Raises:
            ServerError: the server refused, or could not be reached in time; what came before is written.
        """
        key = key or uuid4().hex
        path = f"/v1/indexes/{quote(index, safe='')}/documents?wait={'true' if wait else 'false'}"
        answer: Json = {}
        upserted, errors = 0, []
        for before, body in pieces(documents):
            answer = self._parsed("PUT", path, body, {"idempotency-key": f"{key}-{before}"})
            upserted += answer.get("upserted", 0)
            errors += [{**error, "line": error["line"] + before} for error in answer.get("errors", [])]
        return {**answer, "upserted": upserted, "errors": errors}

    def get(self, path: str) -> Json:
        """The answer of a route that takes no body; ServerError as above."""
        return self._parsed("GET", path, None, {})

    def text(self, path: str) -> str:
        """The same for answers that are not JSON, as ``/metrics``."""
        return self._ask("GET", path, None, {}).decode()

    def post(self, path: str, body: Mapping[str, Any]) -> Json:
        """The answer of a route that only reads; ServerError as above."""
        return self._parsed("POST", path, orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), {})

    def close(self) -> None:
        """Close the connection of this thread; those of others go with their threads."""
        connection: http.client.HTTPConnection | None = getattr(self._of_thread, "connection", None)
        if connection is not None:
            connection.close()
            self._of_thread.connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _parsed(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Json:
        parsed: Json = orjson.loads(self._ask(method, path, body, headers))
        return parsed

    def _ask(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> bytes:
        ends = time.monotonic() + self._deadline_s
        pause_s, failures = FIRST_PAUSE_S, 0
        while True:
            error, after_s = self._attempt(method, path, body, headers, ends)
            if isinstance(error, bytes):
                return error
            failures += error.status == 500
            is_over = error.status not in (0, 500, *BUSY) or failures >= FAILURES
            wait_s = pause_s * random.uniform(0.5, 1.5) if after_s is None else after_s
            if is_over or time.monotonic() + wait_s >= ends:
                raise error
            time.sleep(wait_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _attempt(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], ends: float
    ) -> tuple[bytes | ServerError, float | None]:
        """The answer; or what went wrong, and the seconds that the server wants to be left alone."""
        try:
            connection = self._connection(max(0.01, min(ATTEMPT_S, ends - time.monotonic())))
            connection.request(method, self._base + path, body, {**self._headers, **headers})
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as fault:
            self.close()
            what = str(fault) or type(fault).__name__
            return ServerError(f"{self._host}:{self._port} gave no answer to {method} {path}: {what}"), None
        if answer.status < 400:
            return content, None
        return refusal(answer.status, content), seconds(answer.getheader("retry-after"))

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        """That of this thread."""
        connection: http.client.HTTPConnection | None = getattr(self._of_thread, "connection", None)
        if connection is None:
            connection = self._of_thread.connection = self._kind(self._host, self._port, timeout=timeout_s)
        connection.timeout = timeout_s
        if connection.sock is not None:
            connection.sock.settimeout(timeout_s)
        return connection


def refusal(status: int, content: bytes) -> ServerError:
    """The error that an answer tells of, which may come from a proxy in between."""
    try:
        error = orjson.loads(content)["error"]
        return ServerError(f"{status}: {error['message']}", status, error)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ServerError(f"{status}: {content[:200].decode('utf-8', 'replace')}", status)


def seconds(retry_after: str | None) -> float | None:
    """What ``Retry-After`` says, if it is a number."""
    return float(retry_after) if retry_after is not None and retry_after.isdigit() else None


def pieces(documents: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, bytes]]:
    """Bodies of requests that write the documents, at least one, each with how many documents come before it."""
    held: list[bytes] = []
    before = size = 0
    for document in documents:
        written = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
        if held and size + len(written) > PIECE_BYTES:
            yield before, body_of(held)
            before += len(held)
            held, size = [], 0
        held.append(written)
        size += len(written)
    if held or not before:
        yield before, body_of(held)


def body_of(documents: Sequence[bytes]) -> bytes:
    return b'{"documents":[' + b",".join(documents) + b"]}"
