"""Clients that go, dawdle, or send far too much: what they cost is bounded, and nobody else notices."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import orjson
import psutil
import pytest

from serving.configuration import Limits, ServerConfiguration
from tests.serving.socket_server import serve

SEARCH = "/v1/indexes/docs/search"
JSON = b"content-type: application/json\r\n"
BIG = orjson.dumps({"queries": ["file json path object"] * 64, "k": 1000})
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def client(index_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    configuration = ServerConfiguration(
        indexes={"docs": index_folder},
        data=tmp_path_factory.mktemp("bad-clients") / "data",
        port=0,
        threads=2,
        limits=Limits(body_timeout_s=2),
    )
    with serve(configuration) as client:
        client.put("/v1/indexes/made", json={"encoder": "bm25"}).raise_for_status()
        yield client


Connect = Callable[..., socket.socket]


@pytest.fixture
def connect(client: httpx.Client) -> Iterator[Connect]:
    """Opens a connection and sends bytes on it."""
    opened: list[socket.socket] = []

    def open_one(sent: bytes = b"", receive_buffer: int | None = None) -> socket.socket:
        connection = socket.socket()
        opened.append(connection)
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", client.base_url.port))
        connection.sendall(sent)
        return connection

    yield open_one
    for connection in opened:
        connection.close()


def head(method: str, path: str, headers: bytes = b"", length: int | None = None) -> bytes:
    counted = b"content-length: %d\r\n" % length if length is not None else b"transfer-encoding: chunked\r\n"
    return f"{method} {path} HTTP/1.1\r\nhost: x\r\n".encode() + headers + counted + b"\r\n"


def in_flight(client: httpx.Client) -> float:
    """Requests that are being answered, without the one that asks."""
    lines = client.get("/metrics").text.splitlines()
    return (
        next(float(line.split()[-1]) for line in lines if line.startswith("lexpert_requests_in_flight")) - 1
    )


def assert_well(client: httpx.Client) -> None:
    """Others are answered, and before long nothing is left of anybody."""
    assert client.post(SEARCH, json={"query": "json"}, timeout=30).status_code == 200
    ends = time.monotonic() + 60
    while in_flight(client) and time.monotonic() < ends:
        time.sleep(0.01)
    assert in_flight(client) == 0


def test_clients_that_go_before_their_body_has_come_leave_nothing(
    client: httpx.Client, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(40):
        path = (SEARCH, "/v1/encode", "/v1/indexes/made/documents")[number % 3]
        method = "PUT" if path.endswith("documents") else "POST"
        connect(head(method, path, JSON, 1000) + b'{"query"').close()
    assert_well(client)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_clients_that_go_before_their_answer_has_come_leave_nothing(
    client: httpx.Client, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        connection = connect(head("POST", SEARCH, JSON, len(BIG)) + BIG)
        # Not closed but reset, as by a process that was killed.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
    assert_well(client)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_stream_of_documents_that_breaks_off_keeps_its_whole_lines(
    client: httpx.Client, connect: Connect
) -> None:
    lines = b"".join(b'{"id": "s%d", "text": "stream"}\n' % number for number in range(5))
    piece = lines + b'{"id": "half'
    ndjson = b"content-type: application/x-ndjson\r\n"
    connection = connect(
        head("PUT", "/v1/indexes/made/documents", ndjson) + b"%x\r\n%s\r\n" % (len(piece), piece)
    )
    time.sleep(0.1)
    connection.close()
    assert_well(client)
    assert client.get("/v1/indexes/made/documents/half").status_code == 404


def test_readers_that_do_not_read_hold_nobody_up(client: httpx.Client, connect: Connect) -> None:
    slow = [connect(head("POST", SEARCH, JSON, len(BIG)) + BIG, receive_buffer=4096) for _ in range(8)]
    began = time.monotonic()
    for _ in range(10):
        assert client.post(SEARCH, json={"query": "json"}, timeout=30).status_code == 200
    assert time.monotonic() - began < 25
    for connection in slow:
        assert connection.recv(12) == b"HTTP/1.1 200"
        connection.close()
    assert_well(client)


def test_half_open_connections_hold_nobody_up(client: httpx.Client, connect: Connect) -> None:
    begun = [
        b"",
        b"POST",
        b"POST / HTTP/1.1\r\nhost",
        head("POST", SEARCH, JSON, 1000),
        head("POST", SEARCH, JSON),
    ]
    half = [connect(begun[number % len(begun)]) for number in range(100)]
    assert client.post(SEARCH, json={"query": "json"}, timeout=30).status_code == 200
    with_head = half[3]
    assert with_head.recv(12) == b"HTTP/1.1 408"  # a body is waited for as long as the limit says
    for connection in half:
        connection.close()
    assert_well(client)


@pytest.mark.parametrize("is_announced", [True, False])
@pytest.mark.parametrize(("method", "path"), [("POST", SEARCH), ("PUT", "/v1/indexes/made/documents")])
def test_a_body_of_100_megabytes_is_refused_and_not_kept(
    client: httpx.Client, connect: Connect, method: str, path: str, is_announced: bool
) -> None:
    length = 100 * MEGABYTE
    process = psutil.Process()
    before = most = process.memory_info().rss
    connection = connect(head(method, path, JSON, length if is_announced else None))
    piece = b" " * MEGABYTE
    if not is_announced:
        piece = b"%x\r\n%s\r\n" % (len(piece), piece)
    answer = b""
    try:
        for _ in range(100):
            connection.sendall(piece)
            most = max(most, process.memory_info().rss)
        connection.sendall(b"" if is_announced else b"0\r\n\r\n")
    except OSError:
        pass  # the answer is there, and the connection closed
    while b"body_too_large" not in answer and (more := connection.recv(65536)):
        answer += more
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"body_too_large" in answer
    assert most - before < 40 * MEGABYTE
    assert_well(client)


def test_a_hundred_thousand_headers_are_survived(client: httpx.Client, connect: Connect) -> None:
    many = b"".join(b"h%d: v\r\n" % number for number in range(100_000))
    connection = connect()
    try:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n" + many + b"\r\n")
        answer = connection.recv(65536)
    except OSError:
        answer = b""  # closed without an answer
    assert not answer.startswith(b"HTTP/1.1 5")
    assert_well(client)


@pytest.mark.parametrize(
    "sent",
    [
        b"\0\xff\xfe" * 100 + b"\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET " + b"/x" * 40_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /v1/encode HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/encode HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /v1/encode HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v1/indexes/%ff%00%2e%2e%2fetc HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /page/..%2f..%2fetc%2fpasswd HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
def test_what_is_hardly_http_is_refused(client: httpx.Client, connect: Connect, sent: bytes) -> None:
    connection = connect(sent)
    connection.shutdown(socket.SHUT_WR)
    answer = connection.recv(65536)
    assert not answer or answer.startswith(b"HTTP/1.1 4")
    assert b"Traceback" not in answer
    assert_well(client)
