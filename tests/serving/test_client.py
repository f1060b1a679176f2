"""The client: what it sends, what it sends again, and when it gives up."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

from retrieval import SparseIndex
from runtime.errors import UsageError
from serving import client as client_module
from serving.client import Client, ServerError, pieces
from serving.configuration import ServerConfiguration
from serving.ports import choose_port
from tests.serving.socket_server import serve

FINE = b'HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{"results":1}'
DROPPED = b""
CUT = b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{"


def refused(status: int, retry_after: str = "") -> bytes:
    body = orjson.dumps({"error": {"message": "no", "code": "why", "param": "k", "request_id": "id-1"}})
    retry = f"retry-after: {retry_after}\r\n" if retry_after else ""
    head = f"HTTP/1.1 {status} X\r\nconnection: close\r\n{retry}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def answering(answers: Sequence[bytes]) -> tuple[str, list[bytes]]:
    """A server that gives one answer on each connection, and closes it; its URL, and the requests that came."""
    listening = socket.create_server(("127.0.0.1", 0))
    received: list[bytes] = []

    def work() -> None:
        with listening:
            for answer in answers:
                connection, _ = listening.accept()
                with connection:
                    received.append(read_request(connection))
                    connection.sendall(answer)

    threading.Thread(target=work, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}", received


def read_request(connection: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(
        (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
    )
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def test_searches_and_encodings_are_those_of_the_library(index_folder: Path, index: SparseIndex) -> None:
    with (
        serve(ServerConfiguration(indexes={"docs": index_folder}, port=0)) as server,
        Client(str(server.base_url)) as client,
    ):
        found = client.search("docs", "json decoder", k=3)["results"][0]["hits"]
        assert [hit["id"] for hit in found] == index.search(["json decoder"], k=3).ids[0]
        assert len(client.search("docs", ["json", "path"])["results"]) == 2
        (vector,) = client.encode("docs", "json")
        assert vector["indices"] == index.encoder.vocabulary.find(["json"])
        again = client.search("docs", {"indices": vector["indices"], "values": vector["values"]})
        assert again["results"][0]["hits"]
        assert client.get("/health") == {"status": "ok"}
        with pytest.raises(ServerError) as refusal:
            client.search("docs", "json", k=0)
        assert (refusal.value.status, refusal.value.param) == (422, "k")
        assert refusal.value.request_id


@pytest.mark.parametrize("first", [DROPPED, CUT, refused(429), refused(502), refused(503), refused(500)])
def test_what_may_go_well_next_time_is_asked_again(first: bytes) -> None:
    url, received = answering([first, first, FINE])
    assert Client(url, key="a-key-of-sixteen").search("docs", "json") == {"results": 1}
    assert len(received) == 3
    assert len({request.partition(b"\r\n\r\n")[2] for request in received}) == 1
    assert b"authorization: Bearer a-key-of-sixteen" in received[0]


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 422, 504])
def test_what_will_not_change_is_not_asked_again(status: int) -> None:
    url, received = answering([refused(status), FINE])
    with pytest.raises(ServerError, match="no") as refusal:
        Client(url).search("docs", "json")
    assert (refusal.value.status, refusal.value.code, refusal.value.request_id) == (status, "why", "id-1")
    assert len(received) == 1


def test_an_error_of_the_server_is_believed_when_it_comes_again() -> None:
    url, received = answering([refused(500)] * 4)
    with pytest.raises(ServerError):
        Client(url).encode("docs", "json")
    assert len(received) == client_module.FAILURES


def test_the_pause_is_the_one_that_the_server_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(client_module.time, "sleep", pauses.append)
    url, _ = answering([refused(429, "7"), refused(503), FINE])
    Client(url).search("docs", "json")
    assert pauses[0] == 7
    assert pauses[1] < 1


def test_no_pause_leads_beyond_the_deadline() -> None:
    url, received = answering([refused(429, "60"), FINE])
    began = time.monotonic()
    with pytest.raises(ServerError) as refusal:
        Client(url, deadline_s=5).search("docs", "json")
    assert refusal.value.status == 429
    assert time.monotonic() - began < 5
    assert len(received) == 1


def test_a_server_that_is_not_there_is_waited_for_until_the_deadline() -> None:
    with pytest.raises(ServerError, match="gave no answer") as refusal:
        Client(f"http://127.0.0.1:{choose_port(0)}", deadline_s=0.2).search("docs", "json")
    assert refusal.value.status == 0


def test_writes_that_are_sent_again_have_the_same_idempotency_key() -> None:
    url, received = answering([DROPPED, b'HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{"upserted":1}'])
    assert Client(url).upsert("docs", [{"id": "1"}])["upserted"] == 1
    first, second = received
    assert first == second
    assert b"idempotency-key: " in first


def test_many_documents_are_written_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "PIECE_BYTES", 300)
    documents = [{"id": f"d{number}", "text": f"word{number}"} for number in range(40)]
    documents[17] = {"id": "", "text": "none"}
    with serve(ServerConfiguration(data=tmp_path, port=0)) as server:
        server.put("/v1/indexes/docs", json={"encoder": "bm25"}).raise_for_status()
        client = Client(str(server.base_url))
        answer = client.upsert("docs", documents)
        assert answer["upserted"] == 39
        assert [error["line"] for error in answer["errors"]] == [18]
        assert client.search("docs", "word39")["results"][0]["hits"][0]["id"] == "d39"


def test_there_is_a_request_where_there_are_no_documents() -> None:
    assert list(pieces([])) == [(0, b'{"documents":[]}')]


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://x", "http://"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="no URL"):
        Client(url)
