"""Searching over HTTP beside a route of the same server that does nothing, and beside searching in this process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from runtime.errors import LexpertError, UsageError
from runtime.progress import progress
from serving.bench.load import Load, Request, http_request, run_load
from serving.bench.server_process import ServerProcess, serving

if TYPE_CHECKING:
    from retrieval.index.sparse_index import SparseIndex
    from retrieval.search.hits import Hits

NAME = "bench"
NOTHING = (http_request("GET", "/health"),)
CLIENT = "client"
WARM_S = 0.5
"""Of each load, uncounted, before the first round."""

NO_OP, SEARCH = "no-op", "search"


@dataclass(frozen=True)
class Questions:
    """What is asked of an index.

    Attributes:
        k: hits wanted.
        how: further fields of the request, as ``{"mode": "approximate"}``.
        queries: texts, or the rows of one `SparseActivations`.
    """

    k: int
    how: dict[str, Any]
    queries: Any

    def requests(self) -> list[Request]:
        """Each as a request to the route."""
        return [
            http_request(
                "POST", f"/v1/indexes/{NAME}/search", orjson.dumps({**query, "k": self.k, **self.how})
            )
            for query in self._asked()
        ]

    def _asked(self) -> Iterator[dict[str, Any]]:
        if isinstance(self.queries, list):
            yield from ({"query": text} for text in self.queries)
            return
        for units, weights in self.queries:
            yield {"vector": orjson.Fragment(vector_json(units, weights))}

    def search(self, index: SparseIndex, number: int) -> Hits:
        """Ask in this process."""
        place = number % len(self.queries)
        return index.search(self.queries[place : place + 1], k=self.k, **self.how)


def vector_json(units: Any, weights: Any) -> bytes:
    vector = {
        "indices": np.array(units),
        "values": np.array(weights),
    }  # copies, for maps of files are not taken
    return orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)


@dataclass(slots=True)
class Side:
    """One route of one server with so many connections, round by round.

    Attributes:
        loads: of each round.
        cpu_us: microseconds that each part of the server, and the client, had of the cores for a request, by round.
    """

    loads: list[Load] = field(default_factory=list)
    cpu_us: list[dict[str, float]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return statistics.median(load.rate for load in self.loads)

    @property
    def median_ms(self) -> float:
        return 1e3 * statistics.median(took for load in self.loads for took in load.answered)

    @property
    def p99_ms(self) -> float:
        return 1e3 * statistics.median(load.quantile(0.99) for load in self.loads)

    @property
    def cpu(self) -> dict[str, float]:
        """Medians over rounds."""
        parts = sorted({part for of in self.cpu_us for part in of})
        return {part: statistics.median(of.get(part, 0.0) for of in self.cpu_us) for part in parts}

    @property
    def limit(self) -> tuple[str, float]:
        """The part that had most of a core, and how much of one."""
        part, microseconds = max(self.cpu.items(), key=lambda item: item[1])
        return part, microseconds * self.rate * 1e-6

    def to_json(self) -> dict[str, Any]:
        part, cores = self.limit
        return {
            "requests_per_second": self.rate,
            "requests_per_cpu_second": 1e6 / sum(self.cpu.values()),
            "median_ms": self.median_ms,
            "p99_ms": self.p99_ms,
            "cpu_us": self.cpu,
            "most_used": {"part": part, "cores": cores},
        }


@dataclass(slots=True)
class SearchCost:
    """What was found.

    Attributes:
        sides: by proxy (``"ours"``, or ``"default"``), route and connections.
        alone_s: seconds of each search in this process.
        others: share of all cores' time that other work had meanwhile; None where it cannot be told.
    """

    documents: int
    k: int
    how: dict[str, Any]
    rounds: int
    connections: int
    sides: dict[tuple[str, str, int], Side]
    alone_s: list[float]
    others: float | None = None

    @property
    def alone_ms(self) -> float:
        return 1e3 * statistics.median(self.alone_s)

    def ratio(self, proxy: str = "ours") -> float:
        """Searches a second over requests a second that do nothing, with many connections."""
        return self._side(proxy, SEARCH).rate / self._side(proxy, NO_OP).rate

    def cpu_ratio(self, proxy: str = "ours") -> float:
        """The same for each second of the cores, the client's included."""
        searched, nothing = (sum(self._side(proxy, route).cpu.values()) for route in (SEARCH, NO_OP))
        return nothing / searched

    def added_ms(self, proxy: str = "ours") -> float:
        """What a lone search over HTTP takes beyond one in this process."""
        return self.sides[proxy, SEARCH, 1].median_ms - self.alone_ms

    def proxies(self) -> list[str]:
        return list(dict.fromkeys(proxy for proxy, _, _ in self.sides))

    def _side(self, proxy: str, route: str) -> Side:
        return self.sides[proxy, route, self.connections]

    def to_json(self) -> dict[str, Any]:
        return {
            "documents": self.documents,
            "k": self.k,
            **self.how,
            "rounds": self.rounds,
            "in_process_ms": self.alone_ms,
            "proxies": {
                proxy: {
                    "ratio": self.ratio(proxy),
                    "cpu_ratio": self.cpu_ratio(proxy),
                    "added_ms": self.added_ms(proxy),
                    "sides": [
                        {"route": route, "connections": connections, **side.to_json()}
                        for (of, route, connections), side in self.sides.items()
                        if of == proxy
                    ],
                }
                for proxy in self.proxies()
            },
            "others": self.others,
        }


def measure_search(
    folder: Path,
    questions: Questions,
    scratch: Path,
    *,
    connections: int,
    rounds: int,
    seconds: float,
    with_default_proxy: bool = False,
) -> SearchCost:
    """Ask a server for searches and for nothing, with many connections and with one, in turns.

    Args:
        folder: of the index.
        scratch: for the server's configuration and log.
        seconds: of each load.
        with_default_proxy: whether a second server, behind Ray's own proxy, is asked as well.

    Raises:
        LexpertError: a server does not start, or answers anything but 200.
    """
    from evals.moe_bench.machine import OtherWork
    from retrieval import SparseIndex

    proxies = {"ours": "auto", **({"default": "python"} if with_default_proxy else {})}
    asked = {NO_OP: NOTHING, SEARCH: questions.requests()}
    loads = [(route, count) for count in (connections, 1) for route in (NO_OP, SEARCH)]
    with ExitStack() as stack:
        index = stack.enter_context(SparseIndex.open(folder))
        servers = {
            name: stack.enter_context(
                serving({"indexes": {NAME: str(folder)}, "proxy": proxy}, scratch / name)
            )
            for name, proxy in proxies.items()
        }
        found = SearchCost(
            index.num_documents,
            questions.k,
            questions.how,
            rounds,
            connections,
            {(name, route, count): Side() for name in servers for route, count in loads},
            [],
        )
        advance = stack.enter_context(progress("measuring", rounds + 1, "rounds"))
        others = OtherWork()
        for number in range(rounds + 1):
            order = loads if number % 2 else loads[::-1]
            for name, server in servers.items():
                for route, count in order:
                    side = found.sides[name, route, count] if number else Side()
                    measure(side, server, asked[route], count, seconds if number else WARM_S)
            taken = search_alone(index, questions, seconds if number else WARM_S)
            found.alone_s += taken if number else []
            advance(1)
        found.others = others.share()
    return found


def measure(
    side: Side, server: ServerProcess, requests: Sequence[Request], connections: int, seconds: float
) -> None:
    """One load, and what the processes had of the cores for each of its requests."""
    before = server.cpu_s()
    load = run_load(server.port, requests, connections, seconds=seconds)
    after = server.cpu_s()
    if wrong := load.statuses.keys() - {200}:
        raise LexpertError(f"the server answered {min(wrong)}, not 200; its log is {server.log}")
    used = {part: after[part] - before.get(part, 0.0) for part in after}
    side.loads.append(load)
    side.cpu_us.append(
        {part: 1e6 * seconds / len(load.took) for part, seconds in {**used, CLIENT: load.cpu_s}.items()}
    )


def search_alone(index: SparseIndex, questions: Questions, seconds: float) -> list[float]:
    """Seconds of each search in this process, one after the other."""
    taken: list[float] = []
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        began = time.perf_counter()
        questions.search(index, len(taken))
        taken.append(time.perf_counter() - began)
    return taken


def generated_index(cache: Path, documents: int, queries: int) -> tuple[Path, Any]:
    """An index of vectors like those of SPLADE, made once and kept, and queries for it."""
    from evals.search_bench.csr_file import map_csr_file
    from evals.search_bench.workload import synthetic_workload
    from retrieval.encoders.precomputed import PrecomputedEncoder
    from retrieval.index.writer import IndexWriter

    workload = synthetic_workload(cache, documents, queries)
    folder = workload.folder / "served-index"
    if not folder.exists():
        vectors = map_csr_file(workload.documents)
        unfinished = folder.with_suffix(".new")
        rmtree(unfinished, ignore_errors=True)
        with IndexWriter.create(
            unfinished, encoder=PrecomputedEncoder(num_units=vectors.num_units)
        ) as writer:
            writer.add_vectors([str(row) for row in range(vectors.num_rows)], vectors)
            writer.merge()
        unfinished.rename(folder)
    return folder, map_csr_file(workload.queries)


def queries_of(path: Path) -> list[str]:
    """The lines of a file that are not empty.

    Raises:
        UsageError: there are none.
    """
    lines = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"{path} has no queries; give a file with one on each line")
    return lines
