"""Servers that are killed while documents come in and searches run; a stream that does not fit into memory.

`KILLS` and `SECONDS` are small here, for the sake of the suite; larger ones find more.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.serving.lifecycle_process import LifecycleServer

KILLS = 3
SECONDS = 1.0
GROUPS = 3
MEMBERS = 6

SEEN = "common"
"""A term of every document."""


class Group:
    """Documents that are always written together, and deleted together, by one client.

    Attributes:
        possible: the generations that a search may find after a restart, None for no documents: the last one that
            was answered, and those that were sent after it.
    """

    def __init__(self, number: int) -> None:
        self.name = f"g{number}"
        self.generation = 0
        self.possible: list[int | None] = [None]
        self.answered = 0

    def write(self, client: httpx.Client, generator: random.Random) -> None:
        """One request; what becomes of it if the server is killed, nobody knows."""
        self.generation += 1
        wait = {"wait": generator.choice(["true", "false"])}
        key = {"idempotency-key": f"{self.name}-{self.generation}"}
        if generator.random() < 0.2:
            self.possible.append(None)
            body = {"filter": {"field": "group", "eq": self.name}}
            response = client.post("/v1/indexes/docs/documents/delete", json=body, params=wait, headers=key)
        else:
            self.possible.append(self.generation)
            documents = [
                {
                    "id": f"{self.name}-{member}",
                    "text": f"{SEEN} word{self.generation}",
                    "group": self.name,
                    "generation": self.generation,
                }
                for member in range(MEMBERS)
            ]
            response = client.put(
                "/v1/indexes/docs/documents", json={"documents": documents}, params=wait, headers=key
            )
        assert response.status_code in (200, 202), response.text
        self.answered += 1
        del self.possible[:-1]

    def check(self, client: httpx.Client, is_settled: bool) -> None:
        """All documents of the group are of one generation, or there are none.

        Args:
            is_settled: whether the server has been started anew, so that all that was answered is committed.
        """
        body = {
            "query": SEEN,
            "k": 50,
            "with": ["text"],
            "filter": {"field": "group", "eq": self.name},
        }
        response = client.post("/v1/indexes/docs/search", json=body)
        assert response.status_code == 200, response.text
        hits = response.json()["results"][0]["hits"]
        generations = {hit["document"]["generation"] for hit in hits}
        assert len(hits) in (0, MEMBERS), (self.name, hits)
        assert len(generations) <= 1, (self.name, generations)
        if is_settled:
            seen = generations.pop() if generations else None
            assert seen in self.possible, (self.name, seen, self.possible)
            self.possible = [seen]


def run_until_killed(server: LifecycleServer, groups: list[Group], seed: int) -> list[BaseException]:
    """Write and search from several clients, and kill the server at some moment."""
    generator = random.Random(seed)
    failures: list[BaseException] = []
    is_killed = threading.Event()

    def client_loop(work: Callable[[httpx.Client, random.Random], None], own: random.Random) -> None:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60) as client:
                while not is_killed.is_set():
                    work(client, own)
        except httpx.TransportError as error:
            if not is_killed.wait(10):
                failures.append(error)
        except BaseException as error:
            failures.append(error)

    def search(client: httpx.Client, own: random.Random) -> None:
        own.choice(groups).check(client, is_settled=False)

    works = [*(group.write for group in groups), search, search]
    threads = [
        threading.Thread(target=client_loop, args=(work, random.Random(generator.random()))) for work in works
    ]
    for thread in threads:
        thread.start()
    before = sum(group.answered for group in groups)
    while sum(group.answered for group in groups) == before and not failures:
        time.sleep(0.01)
    time.sleep(generator.uniform(0, SECONDS))
    is_killed.set()
    server.kill()
    for thread in threads:
        thread.join(60)
    return failures


def test_every_answered_write_survives_and_every_search_sees_one_whole_commit(tmp_path: Path) -> None:
    server = LifecycleServer(tmp_path / "data", commits={"seconds": 0.05})
    groups = [Group(number) for number in range(GROUPS)]
    with server:
        fields = {"group": "keyword", "generation": "int"}
        made = server.client.put("/v1/indexes/docs", json={"encoder": "bm25", "fields": fields})
        assert made.status_code == 201
        for kill in range(KILLS):
            assert run_until_killed(server, groups, seed=kill) == []
            server.start()
            for group in groups:
                group.check(server.client, is_settled=True)
    assert sum(group.answered for group in groups) > 0


@pytest.fixture
def lines() -> Iterator[bytes]:
    """200,000 documents, 20 MB, in pieces as a client would send them."""
    return (
        b"".join(
            b'{"id":"document %07d","text":"common word%d another%d and some more of a text"}\n'
            % (number, number % 1000, number % 77)
            for number in range(first, first + 1000)
        )
        for first in range(0, 200_000, 1000)
    )


def peak_megabytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("reads the memory of a process as Linux shows it")
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def test_a_long_stream_is_taken_in_bounded_memory(tmp_path: Path, lines: Iterator[bytes]) -> None:
    with LifecycleServer(tmp_path / "data", commits={"seconds": 3600, "documents": 60_000}) as server:
        server.client.put("/v1/indexes/docs", json={"encoder": "bm25"})
        headers = {"content-type": "application/x-ndjson", "idempotency-key": "stream"}
        first = b"".join(next(lines) for _ in range(5))
        server.client.put("/v1/indexes/docs/documents", content=first, headers=headers)
        before = peak_megabytes(server.pid)
        headers["idempotency-key"] = "rest"
        url = "/v1/indexes/docs/documents?wait=false"
        answer = server.client.put(url, content=lines, headers=headers, timeout=300)
        assert (answer.status_code, answer.json()) == (
            202,
            {"status": "acknowledged", "upserted": 195_000, "errors": []},
        )
        grown = peak_megabytes(server.pid) - before
        print(f"peak memory grew by {grown:.0f} MB")
        assert grown < 300
        # Killed at once: what was answered is there, whether a commit has it or only the log.
        server.kill()
        server.start()
        assert server.client.get("/v1/indexes/docs").json()["documents"] == 200_000
