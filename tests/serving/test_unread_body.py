"""Answers to requests whose body is not read to its end, message by message."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from serving import asgi
from serving.asgi import Message

SEARCH = "/v1/indexes/docs/search"
JSON = (b"content-type", b"application/json")
LONG = (b"content-length", b"9000000")


def body_parts(*lengths: int) -> list[Message]:
    parts: list[Message] = [
        {"type": "http.request", "body": b" " * length, "more_body": True} for length in lengths
    ]
    parts[-1]["more_body"] = False
    return parts


def exchange(
    api: Any,
    received: Iterable[Message],
    headers: list[tuple[bytes, bytes]],
    method: str = "POST",
    path: str = SEARCH,
) -> list[Any]:
    """Everything that passed, in order: messages sent, and 'received' for every one taken.

    After the last one to take, nothing more comes.
    """
    passed: list[Any] = []
    coming: Iterator[Message] = iter(received)

    async def receive() -> Message:
        message = next(coming, None)
        if message is None:
            await asyncio.Event().wait()
            raise AssertionError
        passed.append("received")
        return message

    async def send(message: Message) -> None:
        passed.append(message)

    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers}
    asyncio.run(api.api(scope, receive, send))
    return passed


def assert_whole_before_the_end(passed: list[Any], taken: int) -> None:
    """The whole answer was sent while the body was coming, and ended after `taken` more parts of it."""
    start, body = (place for place, each in enumerate(passed[:-1]) if each != "received")
    headers = dict(passed[start]["headers"])
    assert headers[b"connection"] == b"close"
    assert len(passed[body]["body"]) == int(headers[b"content-length"])
    assert passed[body]["more_body"]
    assert passed[body + 1 : -1] == ["received"] * taken
    assert passed[-1] == {"type": "http.response.body", "body": b""}


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (SEARCH, [JSON, LONG]),
        (SEARCH, [LONG]),
        ("/nothing", [JSON, LONG]),
        ("/v1/encode", [(b"transfer-encoding", b"chunked")]),
    ],
)
def test_the_rest_of_an_unread_body_is_taken_after_the_answer(
    api: Any, path: str, headers: list[tuple[bytes, bytes]]
) -> None:
    passed = exchange(api, body_parts(70_000, 70_000, 0, 70_000), headers, path=path)
    assert_whole_before_the_end(passed, taken=4)


def test_a_body_found_too_long_on_the_way_is_taken_to_its_end(api: Any) -> None:
    passed = exchange(api, body_parts(70_000, 70_000, 70_000), [JSON, (b"transfer-encoding", b"chunked")])
    assert passed[:2] == ["received"] * 2
    assert passed[2]["status"] == 413
    assert_whole_before_the_end(passed, taken=1)


def test_a_client_that_goes_is_not_waited_for(api: Any) -> None:
    passed = exchange(api, [body_parts(70_000, 1)[0], {"type": "http.disconnect"}], [JSON, LONG])
    assert_whole_before_the_end(passed, taken=2)


def test_a_body_without_an_end_is_taken_for_a_limited_time(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "UNREAD_S", 0.01)
    passed = exchange(api, body_parts(70_000, 1)[:1], [JSON, LONG])
    assert_whole_before_the_end(passed, taken=1)


@pytest.mark.parametrize(
    ("method", "path", "received", "headers", "status"),
    [
        ("POST", SEARCH, body_parts(5), [JSON, (b"content-length", b"5")], 400),
        ("POST", SEARCH, body_parts(120_000), [JSON, (b"transfer-encoding", b"chunked")], 413),
        ("GET", "/health", [], [], 200),
        ("POST", "/nothing", [], [(b"content-length", b"0")], 404),
    ],
)
def test_nothing_is_waited_for_where_the_body_was_read_or_is_none(
    api: Any,
    method: str,
    path: str,
    received: list[Message],
    headers: list[tuple[bytes, bytes]],
    status: int,
) -> None:
    *before, start, body = exchange(api, received, headers, method, path)
    assert before == ["received"] * len(received)
    assert start["status"] == status
    assert b"connection" not in dict(start["headers"])
    assert not body["more_body"]
