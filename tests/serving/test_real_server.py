"""The same API behind Ray Serve and its proxy, over real sockets."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp

import httpx
import psutil
import pytest

from retrieval import SparseIndex
from serving.application import RunningServer, running
from serving.configuration import ServerConfiguration
from serving.haproxy import usable_haproxy
from serving.private_folder import LONGEST_BASE

# Not importorskip: Ray must be imported by the server, after its settings are made.
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs the serving extra")

LOOPBACK = ("127.", "::1", "::ffff:127.")


@pytest.fixture(scope="module")
def server(configuration: ServerConfiguration) -> Iterator[RunningServer]:
    with running(configuration) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as opened:
        yield opened


def test_every_route_answers(client: httpx.Client, index: SparseIndex) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready", "indexes": {"docs": index.generation}}
    assert client.get("/version").json()["name"] == "lexpert"
    assert client.get("/v1/indexes").json()["indexes"][0]["documents"] == index.num_documents
    encoded = client.post("/v1/encode", json={"model": "docs", "input": "json"}).json()
    assert encoded["data"][0]["indices"] == index.encoder.vocabulary.find(["json"])
    hits = client.post(
        "/v1/indexes/docs/search", json={"query": "ёлка 🎄", "k": 1000, "with": ["text", "explain"]}
    ).json()["results"][0]["hits"]
    assert hits[0]["document"]["text"] == "зимняя ёлка 🎄 naïve café"


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("POST", "/v1/indexes/docs/search", {"json": {"query": "a", "colour": 1}}, 422),
        (
            "POST",
            "/v1/indexes/docs/search",
            {"content": b"{", "headers": {"content-type": "application/json"}},
            400,
        ),
        ("POST", "/v1/indexes/docs/search", {"content": b"query=a"}, 415),
        ("POST", "/v1/indexes/none/search", {"json": {"query": "a"}}, 404),
        ("GET", "/nothing", {}, 404),
        ("PUT", "/v1/indexes/docs/search", {"json": {}}, 405),
        ("GET", "/health?x=1", {}, 400),
    ],
)
def test_errors_keep_their_shape_through_the_proxy(
    client: httpx.Client, method: str, path: str, options: dict[str, object], status: int
) -> None:
    response = client.request(method, path, **options)  # type: ignore[arg-type]
    assert response.status_code == status
    assert response.headers.get_list("x-request-id") == [response.json()["error"]["request_id"]]


def test_a_body_over_the_limit_is_refused_without_reading_all_of_it(client: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield b" " * 65536

    headers = {"content-type": "application/json"}
    for content in (b" " * (8 << 20), endless()):
        response = client.post("/v1/indexes/docs/search", content=content, headers=headers)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/v1/indexes/docs/search", 415), ("POST", "/nothing", 404), ("PUT", "/v1/encode", 405)],
)
def test_a_long_body_that_nobody_wants_does_not_cost_its_answer(
    client: httpx.Client, method: str, path: str, status: int
) -> None:
    response = client.request(method, path, content=b" " * (8 << 20))
    assert response.status_code == status
    assert response.headers["x-request-id"] == response.json()["error"]["request_id"]


def test_a_request_id_goes_there_and_back_once(client: httpx.Client) -> None:
    response = client.get("/health", headers={"x-request-id": "one-two"})
    assert response.headers.get_list("x-request-id") == ["one-two"]
    response = client.get("/health", headers={"x-request-id": "not usable"})
    (made,) = response.headers.get_list("x-request-id")
    assert re.fullmatch("[0-9a-f]{32}", made)


BEHIND_HAPROXY = pytest.mark.skipif(usable_haproxy()[0] is None, reason="needs HAProxy")


def exchange(server: RunningServer, request: bytes) -> httpx.Response:
    """Send bytes that no client library would, and read the answer."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(request)
        return read_answer(connection)


def read_answer(connection: socket.socket) -> httpx.Response:
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = httpx.Headers([tuple(line.split(": ", 1)) for line in lines])  # type: ignore[misc]
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65536)
    return httpx.Response(int(status.split()[1]), headers=headers, content=body)


def assert_refused(response: httpx.Response, status: int, code: str) -> None:
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
    error = response.json()["error"]
    assert error["code"] == code
    assert response.headers.get_list("x-request-id") == [error["request_id"]]


@BEHIND_HAPROXY
@pytest.mark.parametrize(
    ("start", "status", "code"),
    [
        ("FOO /health HTTP/1.1", 501, "method_not_implemented"),
        ("GET /-/healthz HTTP/1.1", 404, "route_not_found"),
        ("GET /-/routes HTTP/1.1", 404, "route_not_found"),
        ("GET /-/Healthz HTTP/1.1", 404, "route_not_found"),
        (
            "GET /ws HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13",
            404,
            "route_not_found",
        ),
    ],
)
def test_what_the_proxy_refuses_has_our_shape(
    server: RunningServer, start: str, status: int, code: str
) -> None:
    assert_refused(exchange(server, f"{start}\r\nhost: x\r\n\r\n".encode()), status, code)
    hostile = exchange(server, f'{start}\r\nhost: x\r\nx-request-id: a"%[x]\\\r\n\r\n'.encode())
    assert_refused(hostile, status, code)
    assert hostile.headers["x-request-id"] == 'a"%[x]\\'


@BEHIND_HAPROXY
def test_clients_that_do_not_end_their_bodies_hold_nobody_up(
    server: RunningServer, client: httpx.Client
) -> None:
    """Half of them send more than the proxy keeps, so that they get as far as the replica."""
    head = (
        b"POST /v1/indexes/docs/search HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: 99000\r\n\r\n"
    )
    unfinished = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(140)]
    for place, connection in enumerate(unfinished):
        connection.sendall(head + b" " * (1 if place % 2 else 50_000))
    assert client.get("/health").status_code == 200
    assert client.post("/v1/indexes/docs/search", json={"query": "file"}).status_code == 200
    unfinished[0].setblocking(False)
    with pytest.raises(BlockingIOError):
        unfinished[0].recv(1)  # so these were answered while the others waited
    unfinished[0].settimeout(30)
    for connection in unfinished:
        assert_refused(read_answer(connection), 408, "timeout")
        connection.close()


def test_simultaneous_requests_get_what_the_library_gives(client: httpx.Client, index: SparseIndex) -> None:
    words = sorted(
        {
            word
            for term in range(0, len(index.encoder.vocabulary), 7)
            if (word := index.encoder.vocabulary.term(term)).isalpha()
        }
    )
    queries = [" ".join(words[start::32][:4]) for start in range(32)]
    together = threading.Barrier(32)

    def ask(query: str) -> list[list[tuple[str, float]]]:
        together.wait()
        answers = []
        for text in (query, query.upper(), f"{query} unseen{query[:3]}"):
            body = client.post("/v1/indexes/docs/search", json={"query": text, "k": 25}).json()
            answers.append([(hit["id"], hit["score"]) for hit in body["results"][0]["hits"]])
        return answers

    with ThreadPoolExecutor(32) as threads:
        answers = list(threads.map(ask, queries))
    for query, answer in zip(queries, answers, strict=True):
        found = index.search([query, query.upper(), query], k=25)
        assert answer == [
            list(zip(ids, scores.tolist(), strict=True))
            for ids, scores in zip(found.ids, found.scores, strict=True)
        ]


@pytest.mark.skipif(sys.platform != "linux", reason="reads sockets of other processes as Linux shows them")
def test_nothing_listens_beyond_this_machine(server: RunningServer) -> None:
    listening = [
        (process.name(), connection.laddr.ip, connection.laddr.port)
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM
    ]
    assert server.port in {port for _, _, port in listening}
    assert [each for each in listening if not each[1].startswith(LOOPBACK)] == []


@pytest.fixture
def longest_base() -> Iterator[Path]:
    """A temporary folder with as long a name as leaves room for the names of sockets."""
    base = mkdtemp(prefix="x", dir="/tmp")
    assert len(base) == LONGEST_BASE
    yield Path(base)
    Path(base).rmdir()  # fails if anything is left


def test_the_command_serves_until_sigterm_and_leaves_nothing(index_folder: Path, longest_base: Path) -> None:
    command = [sys.executable, "-m", "lexpert", "serve", "--index", f"docs={index_folder}", "--port", "0"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**inherited, "TMPDIR": str(longest_base)}
    served = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert served.stderr is not None
    said = []
    for line in served.stderr:
        said.append(line)
        if "curl" in line:
            break
    url = re.search(r"http://127\.0\.0\.1:\d+", "".join(said))
    assert url, said
    family = psutil.Process(served.pid).children(recursive=True)
    assert len(family) > 3
    assert httpx.get(f"{url.group()}/ready", timeout=30).status_code == 200
    served.send_signal(signal.SIGTERM)
    out, rest = served.communicate(timeout=60)
    assert served.returncode == 0
    logged, others = [], []
    for line in rest.splitlines():
        (logged if line.startswith("{") else others).append(line)
    assert (out, others) == ("", ["stopping …", "stopped"])
    assert [json.loads(line)["route"] for line in logged] == ["/ready"]
    assert len(said) == 3, said
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
