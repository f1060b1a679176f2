"""What clients see when parts of a server die, are replaced, or have far more to do than they can."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from serving.bench.load import Load, Request, http_request, run_load
from serving.bench.server_process import ServerProcess
from serving.client import Client, ServerError

INDEX = "bench"
WORDS = [f"word{number}" for number in range(2000)]
LOOK_S = 0.05
WHOLE_S = 60.0
"""How long replicas are waited for."""

CONNECTIONS, CLIENTS = 8, 3

LIGHT: Mapping[str, Any] = {}
HEAVY: Mapping[str, Any] = {"k": 50, "with": ["text", "explain"]}


@dataclass(frozen=True)
class Seen:
    """One fault.

    Attributes:
        values: what was seen, by what it is.
        goal: in words.
        is_reached: whether the goal was.
    """

    fault: str
    values: dict[str, Any]
    goal: str
    is_reached: bool


def small_index(folder: Path, documents: int = 2000) -> Path:
    """An index of random words, weighted by BM25."""
    from retrieval import IndexWriter, SparseEncoder

    draw = random.Random(0)
    with IndexWriter.create(folder, encoder=SparseEncoder.load("bm25")) as writer:
        writer.add(
            {"_id": str(number), "text": " ".join(draw.choices(WORDS, k=40))} for number in range(documents)
        )
    return folder


def search_requests(count: int = 64, how: Mapping[str, Any] = LIGHT) -> list[Request]:
    draw = random.Random(1)
    path = f"/v1/indexes/{INDEX}/search"
    return [
        http_request("POST", path, orjson.dumps({"query": " ".join(draw.choices(WORDS, k=4)), **how}))
        for _ in range(count)
    ]


@dataclass
class Watched:
    """What two kinds of clients see meanwhile: plain requests, and our client, which asks again."""

    load: Load = field(default_factory=Load)
    done: int = 0
    failed: list[str] = field(default_factory=list)

    @property
    def bad(self) -> list[tuple[float, float, int]]:
        """Beginning, end and status of each plain request that was not answered with 200."""
        rows = zip(self.load.began, self.load.took, self.load.status, strict=True)
        return [(began, began + took, status) for began, took, status in rows if status != 200]

    @property
    def bad_s(self) -> float:
        """From the first that failed to the end of the last."""
        bad = self.bad
        return max(end for _, end, _ in bad) - min(began for began, _, _ in bad) if bad else 0.0

    @property
    def longest_s(self) -> float:
        return max(self.load.took, default=0.0)

    def values(self) -> dict[str, Any]:
        """For a report."""
        return {
            "plain": len(self.load.took),
            "not 200": dict(Counter(status for _, _, status in self.bad)),
            "from first to last s": round(self.bad_s, 2),
            "longest answer s": round(self.longest_s, 2),
            "our client": self.done,
            "its failures": self.failed[:3],
        }


@contextmanager
def watched(
    port: int,
    requests: Sequence[Request],
    connections: int = CONNECTIONS,
    *,
    pause_s: float = 0.01,
    deadline_s: float = 30.0,
) -> Iterator[Watched]:
    """Keep asking, plainly and with our client, until the context is left.

    Args:
        connections: of plain requests, which follow on each other; with 0 our client is alone.
        pause_s: between the requests of our client.
        deadline_s: its patience.
    """
    seen = Watched()
    stop = threading.Event()
    bodies = [orjson.loads(request.partition(b"\r\n\r\n")[2]) for request in requests]

    def plain() -> None:
        while not stop.is_set():
            piece = run_load(port, requests, connections, seconds=0.5, silent_s=30)
            seen.load.began += piece.began
            seen.load.took += piece.took
            seen.load.status += piece.status

    def ours(number: int) -> None:
        with Client(f"http://127.0.0.1:{port}", deadline_s=deadline_s) as client:
            while not stop.is_set():
                body = bodies[(seen.done + number) % len(bodies)]
                try:
                    if number % 2:
                        client.encode(INDEX, body["query"])
                    else:
                        client.post(f"/v1/indexes/{INDEX}/search", body)
                except ServerError as error:
                    seen.failed.append(str(error))
                seen.done += 1
                stop.wait(pause_s)

    threads = [threading.Thread(target=plain)] if connections else []
    threads += [threading.Thread(target=ours, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def wait_for(is_so: Callable[[], bool], most_s: float = WHOLE_S) -> float:
    """Seconds until something is so; infinity if it is not in time."""
    began = time.monotonic()
    while time.monotonic() - began < most_s:
        if is_so():
            return time.monotonic() - began
        time.sleep(LOOK_S)
    return float("inf")


def replicas_answering(port: int) -> int:
    """How many replicas answer: each says since when it runs."""
    client, starts = Client(f"http://127.0.0.1:{port}", deadline_s=10), set[int]()
    with client:
        for _ in range(12):
            text = client.text("/metrics")
            found = re.search(r"^lexpert_uptime_seconds (\S+)", text, re.M)
            assert found is not None
            starts.add(round(4 * (time.time() - float(found.group(1)))))
    return len({start for start in starts if start - 1 not in starts})


def replica_killed(server: ServerProcess, times: int = 1) -> Seen:
    """One of two replicas is killed under load, again and again."""
    whole: list[float] = []
    with watched(server.port, search_requests()) as seen:
        for _ in range(times):
            time.sleep(1.0)
            os.kill(random.Random(len(whole)).choice(server.pids("API")), signal.SIGKILL)
            whole.append(wait_for(lambda: replicas_answering(server.port) >= 2))
    most = CONNECTIONS * times
    return Seen(
        f"one of two replicas killed, {times} times",
        {**seen.values(), "whole again s": round(max(whole), 1)},
        f"our client: 0 failed; plain: at most {most} (those in flight); whole again in 10 s",
        not seen.failed and len(seen.bad) <= most and max(whole) < 10,
    )


def part_killed(server: ServerProcess, part: str, most_s: float, after_s: float = 3.0) -> Seen:
    """HAProxy or the controller is killed under load."""
    with watched(server.port, search_requests()) as seen:
        time.sleep(1.0)
        for pid in server.pids(part):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)
        back_s = wait_for(lambda: bool(server.pids(part)))
        time.sleep(after_s)
    return Seen(
        f"{part} killed",
        {**seen.values(), "back s": round(back_s + 0.5, 1)},
        f"refused for at most {most_s:g} s" if most_s else "no errors",
        not seen.failed and (seen.bad_s <= most_s if most_s else not seen.bad) and back_s < WHOLE_S,
    )


def updated(server: ServerProcess, replicas: int, update: Callable[[], None], *, is_refused: bool) -> Seen:
    """The application is deployed anew under load, as it was or so that it cannot start.

    Args:
        replicas: how many there are, and should be afterwards.
        update: deploys it and returns when it runs, or raises.
        is_refused: whether it is meant to raise.
    """
    said = "taken"
    with watched(server.port, search_requests()) as seen:
        time.sleep(1.0)
        try:
            update()
        except Exception as error:  # Ray raises whatever its own parts raised
            said = f"refused: {str(error).strip().splitlines()[-1][:120]}"
        time.sleep(1.0)
        wait_for(lambda: len(server.pids("API")) == replicas, 20)  # those that leave take their time
        left = len(server.pids("API"))
    return Seen(
        "refused update" if is_refused else "good update",
        {**seen.values(), "it was": said, "replicas afterwards": left},
        "no errors, no lost replica",
        not seen.failed and not seen.bad and left == replicas and is_refused == (said != "taken"),
    )


def overload(server: ServerProcess, seconds: float, in_hand: int) -> Seen:
    """Ten times as many clients as have their requests taken, each with much to do."""
    heavy = search_requests(how=HEAVY)
    alone = run_load(server.port, heavy, in_hand, seconds=min(3.0, seconds))
    before = server.memory_bytes()
    loaded = run_load(server.port, heavy, 10 * in_hand, seconds=seconds, pause_s=0.02)
    after = server.memory_bytes()
    lone = run_load(server.port, heavy, 1, seconds=1.0)
    grown = sum(after.values()) / sum(before.values()) - 1
    offered = len(loaded.took) / loaded.seconds / alone.rate
    p99_s = loaded.quantile(0.99)
    return Seen(
        f"overload for {seconds:g} s",
        {
            "capacity/s": round(alone.rate, 1),
            "asked / capacity": round(offered, 1),
            "answered/s": round(loaded.rate, 1),
            "statuses": dict(loaded.statuses),
            "p99 of the answered ms": round(1e3 * p99_s),
            "p99 before ms": round(1e3 * alone.quantile(0.99)),
            "memory": f"{grown:+.1%}",
            "afterwards": dict(lone.statuses),
        },
        "the rest 429 or 503, p99 bounded (2 s), memory flat (2 %), recovery at once",
        loaded.statuses.keys() <= {200, 429, 503}
        and p99_s < 2
        and grown < 0.02
        and lone.statuses.keys() == {200},
    )


def soak(server: ServerProcess, minutes: float) -> Seen:
    """Searches, encodings, what is refused, and connections that come and go, for a while."""
    encode = http_request("POST", "/v1/encode", orjson.dumps({"model": INDEX, "input": ["word1 word2"]}))
    wrong = [
        http_request("POST", "/v1/encode", b"{"),
        http_request("GET", "/nothing"),
        http_request("POST", f"/v1/indexes/{INDEX}/search", orjson.dumps({"query": "word1", "k": 0})),
    ]
    rare = search_requests(how=HEAVY)
    mixed = [*search_requests(count=200), *rare, *[encode] * 60, *wrong]

    def piece(seconds: float) -> Counter[int]:
        statuses: Counter[int] = Counter()
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:  # each with connections of its own
            statuses += run_load(server.port, mixed, CONNECTIONS, seconds=min(5.0, seconds)).statuses
        return statuses

    piece(max(10.0, 6 * minutes))  # caches fill
    memory, descriptors = server.memory_bytes(), server.descriptors()
    statuses = piece(60 * minutes)
    time.sleep(1.0)
    memory_then, descriptors_then = server.memory_bytes(), server.descriptors()
    grown = {part: memory_then[part] / memory[part] - 1 for part in memory if part in memory_then}
    total = sum(memory_then.values()) / sum(memory.values()) - 1
    opened = {part: descriptors_then.get(part, 0) - held for part, held in descriptors.items()}
    return Seen(
        f"soak for {minutes:g} minutes",
        {
            "statuses": dict(statuses),
            "memory": f"{total:+.2%}",
            "of the API": f"{grown.get('API', 0.0):+.2%}",
            "descriptors": {part: more for part, more in opened.items() if more},
        },
        "memory grows by less than 2 %, no descriptor more",
        total < 0.02
        and all(more <= 2 for more in opened.values())
        and statuses.keys() <= {200, 400, 404, 422},
    )
