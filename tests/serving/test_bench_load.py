"""The client of ``lexpert bench serve``: every request is accounted for, whatever becomes of it."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import orjson
import pytest

from serving.bench.load import DROPPED, REFUSED, SILENT, Load, http_request, run_load
from serving.bench.search import SearchCost, Side, vector_json
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


def side(took_ms: float, requests: int, api_us: float) -> Side:
    load = Load([0.0] * requests, [took_ms / 1e3] * requests, [200] * requests, seconds=1.0)
    return Side([load], [{"API": api_us, "client": 50.0}])


def test_a_search_is_told_beside_a_route_that_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from serving.bench.report import print_search

    sides = {
        ("ours", "no-op", 32): side(10, 4000, 150),
        ("ours", "search", 32): side(20, 3000, 350),
        ("ours", "no-op", 1): side(0.3, 1000, 150),
        ("ours", "search", 1): side(0.9, 800, 350),
        ("default", "search", 1): side(4.4, 100, 3000),
        ("default", "search", 32): side(4.4, 100, 3000),
        ("default", "no-op", 32): side(4, 400, 3000),
    }
    cost = SearchCost(100_000, 10, {}, 1, 32, sides, [0.0003, 0.0004, 0.0005])
    assert cost.ratio() == 0.75
    assert cost.cpu_ratio() == 0.5
    assert cost.added_ms() == pytest.approx(0.5)
    assert cost.sides["ours", "search", 32].limit == ("API", pytest.approx(1.05))
    print_search(cost, Console(width=200))
    printed = capsys.readouterr().out
    assert "ours: 75% of the requests/s that do nothing (50% for each second of the cores)" in printed
    assert "0.50 ms more than the 0.40 ms in this process" in printed
    assert "API, 1.05 of a core, which limits" in printed
    assert "that is 12% of what Ray's default proxy adds" in printed
    assert orjson.loads(orjson.dumps(cost.to_json()))["proxies"]["ours"]["ratio"] == 0.75
