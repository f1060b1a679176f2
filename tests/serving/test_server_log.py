"""The log of a server: one object a line, one line a request, nothing in it that is nobody's business."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.configuration import ServerConfiguration
from serving.log import JsonFormatter, last_error, log_to_file, relayed
from tests.serving.socket_server import serve

Lines = Callable[[int], list[dict[str, Any]]]


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    """The file to which the server's log goes."""
    logger = logging.getLogger("serving")
    before = (list(logger.handlers), logger.level, logger.propagate)
    path = tmp_path / "server.log"
    log_to_file(path)
    yield path
    for handler in set(logger.handlers) - set(before[0]):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(before[1])
    logger.propagate = before[2]


@pytest.fixture
def client(index_folder: Path, log_file: Path) -> Iterator[httpx.Client]:
    assert log_file.exists()
    with serve(ServerConfiguration(indexes={"docs": index_folder}, port=0)) as client:
        yield client


@pytest.fixture
def lines(log_file: Path) -> Lines:
    def wait_for(number: int) -> list[dict[str, Any]]:
        """The lines, when there are so many: a request is noted when its answer has been sent."""
        ends = time.monotonic() + 10
        while (found := log_file.read_text("utf-8").splitlines())[
            number - 1 :
        ] == [] and time.monotonic() < ends:
            time.sleep(0.01)
        return [json.loads(line) for line in found]

    return wait_for


def test_each_request_is_a_line(client: httpx.Client, lines: Lines) -> None:
    search = "/v1/indexes/docs/search"
    asked: list[tuple[str, str, Any, str, int]] = [
        ("GET", "/health", None, "/health", 200),
        ("POST", search, {"query": "json"}, "/v1/indexes/{name}/search", 200),
        ("POST", search, {"query": "json", "k": 0}, "/v1/indexes/{name}/search", 422),
        ("DELETE", "/health", None, "other", 405),
        ("GET", "/no/such/path", None, "other", 404),
    ]
    answers = [client.request(method, path, json=body) for method, path, body, _, _ in asked]
    for (method, _, _, route, status), answer, line in zip(asked, answers, lines(len(asked)), strict=True):
        assert line.pop("ms") > 0
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time"))
        assert line == {
            "level": "info",
            "message": "request",
            "request_id": answer.headers["x-request-id"],
            "method": method,
            "route": route,
            "status": status,
        }
        if status >= 400:
            assert answer.json()["error"]["request_id"] == line["request_id"]


def test_the_id_of_a_request_is_its_own(client: httpx.Client, lines: Lines) -> None:
    answer = client.get("/nothing", headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.json()["error"]["request_id"] == "mine-1"
    assert lines(1)[0]["request_id"] == "mine-1"
    unusable = client.get("/nothing", headers={"x-request-id": 'a "b\\n'})
    assert lines(2)[1]["request_id"] == unusable.headers["x-request-id"] != 'a "b\\n'


def test_nothing_of_what_clients_send_is_logged(client: httpx.Client, lines: Lines, log_file: Path) -> None:
    headers = {"authorization": "Bearer s3cret-key", "x-api-key": "s3cret-key", "cookie": "s3cret"}
    client.post("/v1/indexes/docs/search", json={"query": "s3cret question"}, headers=headers)
    client.post("/v1/indexes/s3cret/search?key=s3cret", json={"s3cret": "s3cret"}, headers=headers)
    client.get("/s3cret", headers=headers)
    assert len(lines(3)) == 3
    assert "s3cret" not in log_file.read_text("utf-8")


def test_a_fault_has_its_trace_in_its_line(
    client: httpx.Client, lines: Lines, monkeypatch: pytest.MonkeyPatch, log_file: Path
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError('two\nlines and "quotes"')

    monkeypatch.setattr("serving.routes.search.found", fail)
    answer = client.post("/v1/indexes/docs/search", json={"query": "json"})
    assert answer.status_code == 500
    fault, request = lines(2)
    assert fault["level"] == "error"
    assert fault["request_id"] == request["request_id"] == answer.json()["error"]["request_id"]
    assert fault["trace"].startswith("Traceback (most recent call last):\n")
    assert fault["trace"].endswith('RuntimeError: two\nlines and "quotes"')
    assert last_error(log_file) == fault["message"]


def formatted(level: int, message: str) -> str:
    return JsonFormatter().format(logging.LogRecord("serving", level, "", 0, message, (), None)) + "\n"


def test_the_log_is_relayed_to_its_end(tmp_path: Path) -> None:
    log_file = tmp_path / "server.log"
    log_file.write_text(formatted(logging.ERROR, "first"))
    shown = io.StringIO()
    with relayed(log_file, shown, interval_s=60), log_file.open("a") as log:
        log.write(formatted(logging.ERROR, "second: ё"))
        log.write(formatted(logging.INFO, 'not "level":"error"'))
        log.write("what others write\n")
    told = shown.getvalue().splitlines()
    assert [json.loads(line)["message"] for line in told[:3]] == [
        "first",
        "second: ё",
        'not "level":"error"',
    ]
    assert told[3:] == ["what others write"]
    assert last_error(log_file) == "second: ё"


@pytest.mark.skipif(sys.platform == "win32", reason="files that are open cannot be replaced")
def test_a_log_that_has_grown_is_begun_anew_and_nothing_is_lost(tmp_path: Path) -> None:
    log_file = tmp_path / "server.log"
    log_file.touch()
    shown = io.StringIO()
    with relayed(log_file, shown, interval_s=0.002, most_bytes=2000):

        def write(writer: int) -> None:
            handler = WatchedFileHandler(log_file, encoding="utf-8")
            for number in range(400):
                handler.emit(
                    logging.LogRecord("serving", logging.INFO, "", 0, f"{writer} {number}", (), None)
                )
                time.sleep(0.0002)
            handler.close()

        writers = [threading.Thread(target=write, args=(writer,)) for writer in range(2)]
        for thread in writers:
            thread.start()
        for thread in writers:
            thread.join()
        grown = os.stat(log_file).st_size
    found = shown.getvalue().splitlines()
    assert sorted(found) == sorted(f"{writer} {number}" for writer in range(2) for number in range(400))
    assert grown < 5000
