"""This project's own index: 8-bit impacts, one merged segment; exhaustive, exact and approximate traversal."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evals.search_bench.engines.engine import Engine, Hits, Options, seconds
from runtime.activations import SparseActivations

PART = 50_000
EFFORTS = (0.01, 0.02, 0.04, 0.06, 0.09, 0.13, 0.2, 0.3, 0.5, 0.8)
CANDIDATES = {10: (3.0, 6.0, 10.0, 16.0, 30.0), 1000: (1.1, 1.5, 2.0, 3.0, 5.0)}
"""Documents scored for every result; settings that are tried, as a calibration does."""
COUNTED = 200
"""Queries whose work is counted."""


class Lexpert(Engine):
    name = "lexpert"
    # What is being developed is built anew: its layout and its build time are those of the code as it is.
    keeps_indexes = False
    requires = ("retrieval.encoders.precomputed", "retrieval.index.sparse_index")

    def builds(self, vectors: SparseActivations) -> list[Options]:  # noqa: ARG002
        return [{"impacts": "uint8"}]

    def settings(self, build: Options, k: int) -> list[Options]:  # noqa: ARG002
        return [
            {"mode": "exhaustive"},
            {"mode": "exact"},
            *(
                {"mode": "approximate", "effort": effort, "candidates": candidates}
                for effort in EFFORTS
                for candidates in CANDIDATES[10 if k < 100 else 1000]
            ),
        ]

    def is_always_measured(self, setting: Options) -> bool:
        return setting["mode"] != "approximate"

    def build(self, vectors: SparseActivations, folder: Path, options: Options, scratch: Path) -> float:  # noqa: ARG002
        from retrieval.encoders.precomputed import PrecomputedEncoder
        from retrieval.index.writer import IndexWriter

        encoder = PrecomputedEncoder(num_units=vectors.num_units)

        def build() -> None:
            with IndexWriter.create(folder, encoder=encoder, impacts=options["impacts"]) as writer:
                for start in range(0, vectors.num_rows, PART):
                    part = vectors[start : start + PART]
                    writer.add_vectors([str(row) for row in range(start, start + part.num_rows)], part)
                writer.merge()

        return seconds(build)

    def open(self, folder: Path, options: Options) -> None:  # noqa: ARG002
        from retrieval.index.sparse_index import SparseIndex

        self._index = SparseIndex.open(folder, warm=True)

    def prepare(self, units: NDArray[np.int32], weights: NDArray[np.float32]) -> Any:
        indptr = np.array([0, len(units)], np.int64)
        return SparseActivations(indptr, units, weights, self._index.manifest.num_units)

    def search(self, query: Any, k: int, setting: Options) -> Any:
        return self._search(query, k, setting, 1)

    def _search(
        self, queries: SparseActivations, k: int, setting: Options, threads: int, counters: Any = None
    ) -> Any:
        from retrieval.search.traversal import Traversal

        traversal = Traversal(setting["mode"])
        if setting["mode"] == "approximate":
            # What `effort` and `target_recall` come to, with the number of candidates given.
            traversal = Traversal("approximate", setting["effort"], setting["candidates"])
        # Numbers of documents, as peers return them; a document's id would be looked up from its number.
        return self._index.search_vectors(queries, k, traversal, threads=threads, counters=counters)

    def hits(self, found: Any) -> Hits:
        scores, rows = found[0]
        return rows, scores.astype(np.float64)

    def search_together(self, queries: SparseActivations, k: int, setting: Options, threads: int) -> None:
        """Search a batch of queries on several threads."""
        self._search(queries, k, setting, threads)

    def work(self, queries: list[Any], k: int, setting: Options) -> dict[str, float] | None:
        from retrieval.search.counters import SearchCounters

        counters = SearchCounters()
        for query in queries[:COUNTED]:
            self._search(query, k, setting, 1, counters)
        counted = asdict(counters)
        return {name: count / len(queries[:COUNTED]) for name, count in counted.items() if name != "queries"}
