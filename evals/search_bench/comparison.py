"""Engines side by side: build what is missing, find the settings worth measuring, measure them in turns.

Each index is open in a process of its own, and all processes are pinned to one core, where one of them is busy at a
time. Recall is against the exact answers over the vectors as they were given, also for engines that round them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evals.search_bench.csr_file import map_csr_file
from evals.search_bench.engines.catalogue import OURS, load_engine
from evals.search_bench.engines.engine import Options
from evals.search_bench.process import EngineError, EngineProcess
from evals.search_bench.workload import Workload
from runtime.progress import progress

SURVEY_QUERIES = 200
"""Queries that a setting is tried with; fewer where many results are asked for, whose recall varies less."""
TARGETS = (0.9, 0.95, 0.97, 0.99, 0.999)
"""Recalls at which each engine is compared: its fastest setting that reaches each, and its most exact one."""


@dataclass(frozen=True)
class BuiltIndex:
    """An index of one engine.

    Attributes:
        build_s: seconds on the one core until it could be opened.
        bytes: of its files.
    """

    engine: str
    options: Options
    folder: Path
    build_s: float
    bytes: int


@dataclass
class Measurement:
    """One engine with one index and one setting at one k.

    Attributes:
        recall: mean share of the exact top k.
        median_us: median over queries, of each the median over rounds; `p99_us` likewise.
        rate: queries a second, one after the other: from the mean over queries of the median over rounds.
        busy: share of the time in which the searching thread had the core.
        open_s, first_query_us: of the fresh process.
        resident_bytes: memory of the process after searching; `index_resident_bytes`: what came with the index.
        work: what the mean query touched, where the engine counts it.
    """

    engine: str
    options: Options
    setting: Options
    k: int
    bytes: int
    build_s: float
    recall: float = 0.0
    median_us: float = 0.0
    p99_us: float = 0.0
    rate: float = 0.0
    busy: float = 0.0
    open_s: float = 0.0
    first_query_us: float = 0.0
    resident_bytes: int = 0
    index_resident_bytes: int = 0
    work: dict[str, float] | None = None


@dataclass
class Comparison:
    """What was measured on one workload.

    Attributes:
        documents, queries, nnz: how many there were; non-zeros of the documents.
        measurements: the compared ones, by engine, k and recall.
        surveyed: everything tried to find them: engine, k, recall, and queries a second of the searching
            thread's own time, over few queries.
        threads: seconds of one batch of ours on one thread and on two, by k and setting.
        failed: engines or indexes that could not be measured, and why.
    """

    workload: str
    documents: int
    queries: int
    nnz: int
    rounds: int
    measurements: list[Measurement] = field(default_factory=list)
    surveyed: list[dict[str, Any]] = field(default_factory=list)
    threads: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_engines(
    workload: Workload, engines: Sequence[str], depths: Sequence[int], *, rounds: int, cores: Sequence[int]
) -> Comparison:
    """Measure engines on a workload.

    Args:
        engines: names; their indexes are built where the workload's folder has none.
        depths: the values of k.
        rounds: how often every compared setting answers all queries.
        cores: cores to use: the last for everything, the last two where threads are compared.

    Raises:
        UsageError, NotFoundError: an engine is unknown or not installed.
    """
    documents, queries = map_csr_file(workload.documents), map_csr_file(workload.queries)
    found = Comparison(workload.name, documents.num_rows, queries.num_rows, documents.nnz, rounds)
    log = workload.folder / "engines.log"
    bench = _Bench(workload, list(depths), list(cores), log, found)
    for name in engines:
        load_engine(name)
    chosen: list[tuple[BuiltIndex, Measurement]] = []
    for name in engines:
        try:
            chosen += bench.survey(name)
        except EngineError as error:
            found.failed.append(str(error))
    bench.measure(chosen)
    found.measurements.sort(key=lambda row: (row.k, row.engine != OURS, row.engine, row.recall))
    bench.compare_threads([index for index, row in chosen if row.engine == OURS])
    return found


class _Bench:
    def __init__(
        self, workload: Workload, depths: list[int], cores: list[int], log: Path, found: Comparison
    ) -> None:
        self.workload, self.depths, self.cores, self.log, self.found = workload, depths, cores, log, found

    def _process(self, engine: str, cores: int = 1) -> EngineProcess:
        return EngineProcess(engine, self.cores[-cores:], self.log)

    # Indexes

    def _indexes(self, name: str) -> list[BuiltIndex]:
        documents = map_csr_file(self.workload.documents)
        builds = load_engine(name).builds(documents)
        indexes = []
        with progress(f"building {name}", len(builds), "indexes") as advance:
            for options in builds:
                try:
                    indexes.append(self._index(name, options))
                except EngineError as error:
                    self.found.failed.append(f"{error} (building with {described(options)})")
                advance(1)
        return indexes

    def _index(self, name: str, options: Options) -> BuiltIndex:
        key = hashlib.blake2b(json.dumps(options, sort_keys=True).encode(), digest_size=6).hexdigest()
        folder = self.workload.folder / "indexes" / name / key
        record = folder.with_suffix(".json")
        if not (record.exists() and load_engine(name).keeps_indexes):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with self._process(name) as process:
                built = process.ask(
                    "build", documents=str(self.workload.documents), folder=str(folder), options=dict(options)
                )
            partial = record.with_suffix(".partial")
            partial.write_text(json.dumps({**built, "options": dict(options)}), "utf-8")
            partial.replace(record)
        built = json.loads(record.read_text("utf-8"))
        return BuiltIndex(name, options, folder, built["build_s"], built["bytes"])

    # The settings worth measuring

    def survey(self, name: str) -> list[tuple[BuiltIndex, Measurement]]:
        engine = load_engine(name)
        truths = self.workload.truths(self.depths, engine.takes_weights)
        tried: dict[int, list[tuple[BuiltIndex, Measurement]]] = {k: [] for k in self.depths}
        indexes = self._indexes(name)
        total = sum(len(engine.settings(index.options, k)) for index in indexes for k in self.depths)
        with progress(f"trying {name}", total, "settings") as advance:
            for index in indexes:
                with self._process(name) as process, self._failures(index):
                    self._open(
                        process, index, self.depths[0], engine.settings(index.options, self.depths[0])[0]
                    )
                    for k in self.depths:
                        for setting in engine.settings(index.options, k):
                            tried[k].append((index, self._try(process, index, k, setting, str(truths[k]))))
                            advance(1)
        return [
            pair
            for k in self.depths
            for pair in best_settings(
                tried[k], [engine.is_always_measured(row.setting) for _, row in tried[k]]
            )
        ]

    def _try(
        self, process: EngineProcess, index: BuiltIndex, k: int, setting: Options, truth: str
    ) -> Measurement:
        count = SURVEY_QUERIES if k < 100 else SURVEY_QUERIES // 4
        answer = process.ask("round", setting=dict(setting), k=k, count=count, truth=truth)
        row = Measurement(index.engine, index.options, setting, k, index.bytes, index.build_s)
        row.recall, row.rate = answer["recall"], 1e6 / answer["busy_us"]
        self.found.surveyed.append(
            {"engine": index.engine, "k": k, "recall": row.recall, "rate": row.rate,
             "options": dict(index.options), "setting": dict(setting)}
        )  # fmt: skip
        return row

    def _open(self, process: EngineProcess, index: BuiltIndex, k: int, setting: Options) -> dict[str, Any]:
        queries = self.workload.queries_for(load_engine(index.engine).takes_weights)
        return process.ask(
            "open", folder=str(index.folder), options=dict(index.options), queries=str(queries), k=k,
            setting=dict(setting),
        )  # fmt: skip

    # Measuring in turns

    def measure(self, chosen: list[tuple[BuiltIndex, Measurement]]) -> None:
        times: list[list[list[float]]] = [[] for _ in chosen]
        busy: list[list[float]] = [[] for _ in chosen]
        opened: dict[Path, dict[str, Any]] = {}
        with (
            ExitStack() as stack,
            progress("measuring", self.found.rounds * len(chosen), "rounds") as advance,
        ):
            processes: dict[Path, EngineProcess | None] = {}
            for turn in range(self.found.rounds):
                for place in np.roll(np.arange(len(chosen)), turn).tolist():
                    index, row = chosen[place]
                    folder = index.folder
                    try:
                        if folder not in processes:
                            started = stack.enter_context(self._process(index.engine))
                            processes[folder] = started
                            opened[folder] = self._open(started, index, row.k, row.setting)
                        process = processes[folder]
                        if process is not None:
                            answer = self._round(process, row, with_recall=turn == 0)
                            times[place].append(answer["us"])
                            busy[place].append(answer["busy_us"] / float(np.mean(answer["us"])))
                    except EngineError as error:
                        processes[folder] = None
                        self.found.failed.append(f"{error} ({described(index.options)})")
                    advance(1)
        for place, (index, row) in enumerate(chosen):
            if len(times[place]) == self.found.rounds:
                of_query = np.median(np.array(times[place]), axis=0)
                row.median_us, row.p99_us = float(np.median(of_query)), float(np.percentile(of_query, 99))
                row.rate = 1e6 / float(of_query.mean())
                row.busy = float(np.median(busy[place]))
                row.open_s = opened[index.folder]["open_s"]
                row.first_query_us = opened[index.folder]["first_query_us"]
                self.found.measurements.append(row)

    def _round(self, process: EngineProcess, row: Measurement, with_recall: bool) -> dict[str, Any]:
        truth = None
        if with_recall:
            truth = str(self.workload.truths([row.k], load_engine(row.engine).takes_weights)[row.k])
        answer = process.ask(
            "round", setting=dict(row.setting), k=row.k, count=self.found.queries, truth=truth
        )
        if with_recall:
            row.recall, row.work = answer["recall"], answer["work"]
        row.resident_bytes = answer["resident_bytes"]
        row.index_resident_bytes = answer["index_resident_bytes"]
        return answer

    @contextmanager
    def _failures(self, index: BuiltIndex) -> Iterator[None]:
        """An engine that fails is passed over; what was measured before stays."""
        try:
            yield
        except EngineError as error:
            self.found.failed.append(f"{error} ({described(index.options)})")

    # Threads

    def compare_threads(self, ours: list[BuiltIndex]) -> None:
        if not ours or len(self.cores) < 2:
            return
        rows = [
            row for row in self.found.measurements if row.engine == OURS and row.options == ours[0].options
        ]
        with self._process(OURS, cores=2) as process, self._failures(ours[0]):
            for place, row in enumerate(rows):
                if place == 0:
                    self._open(process, ours[0], row.k, row.setting)
                taken = process.ask(
                    "threads",
                    setting=dict(row.setting),
                    k=row.k,
                    count=self.found.queries,
                    rounds=self.found.rounds,
                )
                self.found.threads.append(
                    {"k": row.k, "setting": dict(row.setting), "one_s": taken["1"], "two_s": taken["2"],
                     "ratio": taken["1"] / taken["2"]}
                )  # fmt: skip


def best_settings(
    tried: list[tuple[BuiltIndex, Measurement]], always: Sequence[bool]
) -> list[tuple[BuiltIndex, Measurement]]:
    """The fastest that reaches each target, the fastest of the highest recall, and those that are always wanted."""
    highest = max((row.recall for _, row in tried), default=0.0)
    kept = {place for place, wanted in enumerate(always) if wanted}
    for target in (*TARGETS, highest):
        reaching = [place for place, (_, row) in enumerate(tried) if row.recall >= target]
        if reaching:
            kept.add(max(reaching, key=lambda place: tried[place][1].rate))
    return [tried[place] for place in sorted(kept)]


def described(options: Options) -> str:
    """Options or settings for people: ``n_postings 236, sorted``."""
    parts = []
    for name, value in options.items():
        if value is True:
            parts.append(name)
        elif value is not False:
            parts.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join(parts)
