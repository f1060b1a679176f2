"""A few of the requests that ``bench/fuzz_routes.py`` sends."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("schemathesis")

from bench.fuzz_routes import Fuzzed, fuzz, served


def test_no_request_makes_the_server_fail(tmp_path: Path) -> None:
    with served(tmp_path) as client:
        found = fuzz(client, 120)
        assert client.get("/ready").status_code == 200
    assert found.wrong == {}
    assert found.requests >= 120
    assert {200, 400, 404, 422} <= found.statuses.keys()


@pytest.mark.parametrize(
    ("status", "body", "wrong"),
    [
        (200, b"{}", None),
        (404, b'{"error":{"message":"no","request_id":"1"}}', None),
        (404, b'{"error":{"message":"no","request_id":"2"}}', "the shape of an error"),
        (404, b"Not Found", "the shape of an error"),
        (200, b"Traceback (most recent call last)", "a trace"),
        (500, b'{"error":{"message":"no","request_id":"1"}}', "status 500"),
        (504, b'{"error":{"message":"no","request_id":"1","param":"timeout_ms"}}', None),
    ],
)
def test_a_wrong_answer_is_noted(status: int, body: bytes, wrong: str | None) -> None:
    found = Fuzzed()
    found.check("GET /", status, {"x-request-id": "1"}, body, 0.1, "asked")
    assert [kind for _, kind in found.wrong] == ([wrong] if wrong else [])
