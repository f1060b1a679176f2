"""Measures what recall an approximate search reaches by how much work, so that a recall can be asked for.

Every measure counts work, not time: the same index and queries give the same calibration on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from retrieval.index.calibration import Calibration, CalibrationPoint
from retrieval.index.scorable import scorable
from retrieval.index.sparse_index import SparseIndex
from retrieval.search.batch import Found
from retrieval.search.counters import SearchCounters
from retrieval.search.tiered import POSTINGS_PER_SCORED
from retrieval.search.traversal import Traversal
from runtime.activations import SparseActivations
from runtime.cores import available_cores
from runtime.errors import UsageError
from runtime.progress import Advance

EFFORTS = (0.005, 0.0085, 0.015, 0.025, 0.042, 0.07, 0.12, 0.2, 0.35, 0.6, 1.0)
CANDIDATES = {
    10: (2.0, 4.0, 8.0, 16.0, 32.0),
    100: (1.2, 1.5, 2.0, 4.0, 8.0),
    1000: (1.05, 1.2, 1.5, 2.0, 3.0, 5.0),
}
"""For each k, how many documents are scored for every result wanted."""

MOST_QUERIES = {10: 512, 100: 512, 1000: 32}
"""A query for 1,000 results tells as much about recall as many for 10, and takes as long."""
FEWEST_QUERIES = 8
MADE_QUERIES = 128
FEWEST_UNITS, MOST_UNITS = 6, 64
"""Units that a document has at least if a query is made of it, and that such a query has at most."""
PERTURBATION = 0.3
"""Standard deviation of the logarithm of a made query's weights about those of its document."""
SURVEY_SHARE, SURVEY_QUERIES = 4, 64
"""Every so many-th query, and at most so many, are tried with every setting; the others with promising ones."""
POSTINGS_PER_GROUP = 3
"""A group of documents that only exact search looks at takes as long as adding up so many postings."""
POSTINGS_PER_SWEPT = 2
"""Adding up everything ends with a look at every document of a segment, which takes as long as so many postings."""
SHARE = 8
"""Queries that a thread takes at a time."""
MARGIN = 0.01
"""A setting is promising unless a cheaper one finds so much more."""
LEAST_RECALL = 0.5
"""Settings that find less are of no use."""

Measured = tuple[NDArray[np.float64], float]
"""Recall of each of some queries, and the cost of all of them."""


def calibrate(
    index: SparseIndex,
    queries: Sequence[str] | SparseActivations | None = None,
    *,
    seed: int = 0,
    advance: Advance | None = None,
) -> Calibration:
    """Measure settings of the approximate search on an index.

    Args:
        queries: texts or vectors, held back, of the kind that will be searched for; at most 512 of them are
            used. None for queries made from documents: the heaviest third of the units of some, with weights
            a little off. Whether such a query finds its own document does not count.
        seed: of the choice of queries or documents.
        advance: called with the number of searches done since the last call.

    Raises:
        UsageError: fewer than 8 of the `queries` find anything.
        InputError: vectors with negative or infinite weights, or with units that there are not.
    """
    random = np.random.default_rng(seed)
    if queries is None:
        vectors, sources = _queries_of_documents(index, random)
    else:
        chosen = random.permutation(len(queries))[: max(MOST_QUERIES.values())]
        if isinstance(queries, SparseActivations):
            vectors = queries.numpy()[chosen]
        else:
            vectors = index.encoder.encode_queries([queries[query] for query in chosen.tolist()])
        vectors = scorable(vectors, max(index.manifest.num_units, 1))
        sources = np.full(len(vectors), -1, np.int64)
    points: list[CalibrationPoint] = []
    used = 0
    if index.is_tiered:
        with ThreadPoolExecutor(available_cores(), thread_name_prefix="calibrate") as threads:
            for k in CANDIDATES:
                if k > index.num_documents:
                    continue
                most = MOST_QUERIES[k]
                measure = _Measure(index, vectors[:most], sources[:most], k, threads, advance)
                if measure.num_queries < FEWEST_QUERIES:
                    if queries is None:
                        continue  # documents too poor to make queries of: exact search it is
                    raise UsageError(
                        f"only {measure.num_queries} of {len(vectors)} queries find anything to calibrate with, "
                        f"but at least {FEWEST_QUERIES} must; give more, or none to make them from documents"
                    )
                used = max(used, measure.num_queries)
                points += measure.front()
    return Calibration(
        documents=index.num_documents, queries=used, held_back=queries is not None, points=points
    )


def _queries_of_documents(
    index: SparseIndex, random: np.random.Generator
) -> tuple[SparseActivations, NDArray[np.int64]]:
    """Queries, and the row of the index that each was made from."""
    segments = index.segments
    starts = np.cumsum([0, *(segment.num_documents for segment in segments)])
    live = [
        start + np.flatnonzero(~segment.deleted) for start, segment in zip(starts, segments, strict=False)
    ]
    rows = random.permutation(np.concatenate([np.zeros(0, np.int64), *live]))[: 4 * MADE_QUERIES]
    made, sources = [], []
    for row in rows.tolist():
        place = int(np.searchsorted(starts, row, side="right")) - 1
        units, weights = segments[place].row(row - int(starts[place]))
        if len(units) < FEWEST_UNITS:
            continue
        size = min(len(units) // 3, MOST_UNITS)
        chosen = np.sort(np.argsort(-weights, kind="stable")[:size])
        noise = np.exp(PERTURBATION * random.standard_normal(size))
        made.append((units[chosen].tolist(), (weights[chosen] * noise).tolist()))
        sources.append(row)
        if len(made) == MADE_QUERIES:
            break
    return SparseActivations.from_rows(made, max(index.manifest.num_units, 1)), np.array(sources, np.int64)


class _Measure:
    """The exact results of some queries for one `k`, and what settings find of them."""

    def __init__(
        self,
        index: SparseIndex,
        vectors: SparseActivations,
        sources: NDArray[np.int64],
        k: int,
        threads: Executor,
        advance: Advance | None,
    ) -> None:
        self._index = index
        self._k = k
        self._threads = threads
        self._advance = advance
        tiered = [segment.num_documents for segment in index.segments if segment.entry.layout == "tiers"]
        self._sweep_cost = POSTINGS_PER_SWEPT * float(np.mean(tiered))
        exact, cost = self._search(vectors, Traversal("exact"))
        # A document that a query was made of is no result.
        wanted = np.array(
            [len(rows) - int(source in rows) for (_, rows), source in zip(exact, sources, strict=True)],
            np.int64,
        )
        finding = np.flatnonzero(wanted > 0)
        self.num_queries = len(finding)
        self._vectors = vectors[finding]
        self._sources = sources[finding]
        self._wanted = wanted[finding]
        self._thresholds = [exact[query][0][-1] for query in finding.tolist()]
        self._exact_cost = cost / max(len(vectors), 1)

    def front(self) -> list[CalibrationPoint]:
        """The settings that no other one beats, by ascending recall."""
        surveyed = min(max(self.num_queries // SURVEY_SHARE, FEWEST_QUERIES), SURVEY_QUERIES)
        points = []
        for traversal, (recalls_of_first, cost_of_first) in self._promising(surveyed):
            recalls_of_rest, cost_of_rest = self._measure(traversal, surveyed, self.num_queries)
            recalls = np.concatenate((recalls_of_first, recalls_of_rest))
            mean, error = recalls.mean(), recalls.std(ddof=1) / np.sqrt(len(recalls))
            point = CalibrationPoint(
                k=self._k,
                effort=traversal.effort,
                candidates=traversal.num_candidates(self._k) / self._k,
                recall=max(0.0, float(mean - 2 * error)),
                mean=float(mean),
                cost=(cost_of_first + cost_of_rest) / len(recalls),
            )
            if point.cost < self._exact_cost:
                points.append(point)
        front: list[CalibrationPoint] = []
        for point in sorted(points, key=lambda point: (point.cost, -point.recall)):
            if not front or point.recall > front[-1].recall:
                front.append(point)
        return front

    def _promising(self, surveyed: int) -> list[tuple[Traversal, Measured]]:
        """The settings that the first queries do not rule out, and what those queries said."""
        tried: list[tuple[Traversal, Measured]] = []
        enough = np.inf
        for candidates in CANDIDATES[self._k]:
            for effort in EFFORTS:
                if effort >= enough:
                    break  # fewer candidates find it all, too
                traversal = Traversal("approximate", effort, candidates)
                recalls, cost = self._measure(traversal, 0, surveyed)
                tried.append((traversal, (recalls, cost)))
                if recalls.min() == 1:
                    enough = effort
                if cost >= self._exact_cost * surveyed:
                    break
        return [
            (traversal, (recalls, cost))
            for traversal, (recalls, cost) in tried
            if recalls.mean() >= LEAST_RECALL
            and not any(
                others.mean() > recalls.mean() + MARGIN and other_cost <= cost
                for _, (others, other_cost) in tried
            )
        ]

    def _measure(self, traversal: Traversal, first: int, last: int) -> Measured:
        """What a setting finds of the results of the queries from `first` to before `last`."""
        found, cost = self._search(self._vectors[first:last], traversal)
        recalls = np.zeros(last - first)
        for place, (scores, rows) in enumerate(found):
            query = first + place
            good = rows[scores >= self._thresholds[query]]  # whatever ties with the last result is as good
            hits = len(good) - int(self._sources[query] in good)
            recalls[place] = min(hits / self._wanted[query], 1.0)
        return recalls, cost

    def _search(self, vectors: SparseActivations, traversal: Traversal) -> tuple[list[Found], float]:
        def search(start: int) -> tuple[list[Found], SearchCounters]:
            counters = SearchCounters()  # its own: adding up in several threads would lose counts
            share = vectors[start : start + SHARE]
            return self._index.search_vectors(share, self._k, traversal, counters=counters), counters

        found: list[Found] = []
        cost = 0.0
        for of_share, counters in self._threads.map(search, range(0, len(vectors), SHARE)):
            found += of_share
            cost += counters.postings + POSTINGS_PER_SCORED * counters.scored
            cost += POSTINGS_PER_GROUP * counters.groups + self._sweep_cost * counters.exhaustive
            if self._advance:
                self._advance(len(of_share))
        return found, cost
