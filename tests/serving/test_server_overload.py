"""A server with far more to do than it takes, over real sockets."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from serving.application import running
from serving.configuration import ServerConfiguration

# Not importorskip: Ray must be imported by the server, after its settings are made.
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs the serving extra")

CLIENTS = 48


def test_what_is_too_much_is_refused_with_429_and_when_to_come_back(index_folder: Path) -> None:
    configuration = ServerConfiguration(
        indexes={"docs": index_folder}, port=0, threads=1, max_ongoing_requests=2, max_queued_requests=2
    )
    body = {"queries": ["file json path object"] * 10, "k": 100, "with": ["text", "explain"]}
    together = threading.Barrier(CLIENTS)
    with (
        running(configuration) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):

        def ask(_: int) -> httpx.Response:
            together.wait()
            return client.post("/v1/indexes/docs/search", json=body)

        with ThreadPoolExecutor(CLIENTS) as threads:
            answers = list(threads.map(ask, range(CLIENTS)))
        assert client.get("/health").status_code == 200
    assert {answer.status_code for answer in answers} == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            error = answer.json()["error"]
            assert (error["code"], error["type"]) == ("overloaded", "rate_limit_error")
            assert answer.headers["retry-after"] == "1"
            assert answer.headers.get_list("x-request-id") == [error["request_id"]]
