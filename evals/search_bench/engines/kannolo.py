"""kANNolo (Delfino et al. 2025): a navigable small-world graph (HNSW) over sparse vectors."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evals.search_bench.engines.engine import Engine, Hits, Options, seconds
from runtime.activations import SparseActivations

INDEX = "graph"
EFFORTS = (10, 20, 40, 80, 160, 320, 640, 1500, 3000)


class Kannolo(Engine):
    name = "kannolo"
    requires = ("kannolo",)

    def builds(self, vectors: SparseActivations) -> list[Options]:  # noqa: ARG002
        return [
            {"kind": kind, "m": m, "ef_construction": effort}
            for kind, (m, effort) in product(("SparsePlainHNSW", "SparseFixedU8HNSW"), ((16, 200), (32, 400)))
        ]

    def settings(self, build: Options, k: int) -> list[Options]:  # noqa: ARG002
        return [
            {"ef_search": max(k, effort)}
            for effort in sorted({max(k, e) for e in (10, 20, 40, 80, 160, 320, 640, 1500, 3000)})
        ]

    def build(self, vectors: SparseActivations, folder: Path, options: Options, scratch: Path) -> float:  # noqa: ARG002
        import kannolo

        arrays = (
            np.array(vectors.units, np.int32),
            np.array(vectors.weights, np.float32),
            np.array(vectors.indptr, np.int64),
        )
        kind = getattr(kannolo, options["kind"])

        def build() -> None:
            index = kind.build_from_arrays(
                *arrays, m=options["m"], ef_construction=options["ef_construction"]
            )
            index.save(str(folder / INDEX))

        return seconds(build)

    def open(self, folder: Path, options: Options) -> None:
        import kannolo

        self._index = getattr(kannolo, options["kind"]).load(str(folder / INDEX))

    def prepare(self, units: NDArray[np.int32], weights: NDArray[np.float32]) -> Any:
        return np.array(units, np.int32), np.array(weights, np.float32)

    def search(self, query: Any, k: int, setting: Options) -> Any:
        return self._index.search(*query, k, setting["ef_search"])

    def hits(self, found: Any) -> Hits:
        scores, ids = (np.asarray(array) for array in found)
        # A distance, so smaller is better; its sign differs between kinds.
        scores = np.abs(scores.astype(np.float64))
        order = np.argsort(-scores, kind="stable")
        return ids[order].astype(np.int64), scores[order]
