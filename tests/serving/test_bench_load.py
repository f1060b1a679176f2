"""The client of ``lexpert bench serve``: every request is accounted for, whatever becomes of it."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import orjson
import pytest

from serving.bench.load import DROPPED, REFUSED, SILENT, http_request, run_load
from serving.bench.search import vector_json
from serving.bench.server_process import part_of
from serving.configuration import ServerConfiguration
from serving.ports import choose_port
from tests.serving.socket_server import serve


def test_every_request_gets_its_answer(index_folder: Path) -> None:
    search = http_request("POST", "/v1/indexes/docs/search", orjson.dumps({"query": "json"}))
    asked = [search, http_request("GET", "/nothing"), http_request("POST", "/nothing", b"{}")]
    with serve(ServerConfiguration(indexes={"docs": index_folder}, port=0)) as client:
        load = run_load(client.base_url.port or 0, asked, 4, seconds=30, most=60)
    assert load.statuses == {200: 20, 404: 40}
    assert len(load.answered) == 20
    assert load.quantile(0) <= load.median <= load.quantile(1) <= load.seconds


def answer_with(answer: bytes, connections: int) -> int:
    """The port of a server that reads once on each connection, sends `answer` and closes it."""
    listening = socket.create_server(("127.0.0.1", 0))

    def work() -> None:
        for _ in range(connections):
            connection, _ = listening.accept()
            connection.recv(65536)
            connection.sendall(answer)
            connection.close()
        listening.close()

    threading.Thread(target=work, daemon=True).start()
    return int(listening.getsockname()[1])


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", b"HTTP/1.1 200 OK\r\n\r\n"]
)
def test_an_answer_that_does_not_come_to_its_end_is_a_dropped_connection(answer: bytes) -> None:
    load = run_load(answer_with(answer, 3), [http_request("GET", "/")], 1, seconds=30, most=3)
    assert load.status == [DROPPED] * 3


def test_a_server_that_is_not_there_refuses() -> None:
    load = run_load(choose_port(0), [http_request("GET", "/")], 2, seconds=0.1)
    assert set(load.status) == {REFUSED}
    assert load.rate == 0


def test_a_server_that_says_nothing_is_given_up() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    with listening:
        port = listening.getsockname()[1]
        load = run_load(port, [http_request("GET", "/")], 2, seconds=30, most=2, silent_s=0.2)
    assert load.status == [SILENT] * 2


def test_processes_are_told_apart_by_their_command_lines() -> None:
    assert part_of("ray::ServeReplica:lexpert:api ") == "API"
    assert part_of("ray::ServeReplica:lexpert:writer ") == "other replicas"
    assert part_of("/x/haproxy -db -f /tmp/p/haproxy.cfg ") == "HAProxy"
    assert part_of("ray::ServeController.listen_for_change ") == "controller"
    assert part_of("/x/raylet/raylet --socket ") == "Ray"


def test_vectors_are_written_as_short_as_their_numbers_are() -> None:
    import numpy as np

    assert vector_json(np.array([3, 17], np.int32), np.array([0.1, 2.5], np.float32)) == (
        b'{"indices":[3,17],"values":[0.1,2.5]}'
    )
