"""bm25s with its Numba back end: exact sums of postings, for queries whose terms have no weights.

Document weights are taken as they are in place of those that it would compute. It knows no weights of query terms,
so it is asked, and measured, with queries whose weights are all 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evals.search_bench.engines.engine import Engine, Hits, Options, seconds
from runtime.activations import SparseActivations


class Bm25s(Engine):
    name = "bm25s"
    requires = ("bm25s", "scipy")
    takes_weights = False

    def builds(self, vectors: SparseActivations) -> list[Options]:  # noqa: ARG002
        return [{}]

    def settings(self, build: Options, k: int) -> list[Options]:  # noqa: ARG002
        return [{}]

    def build(self, vectors: SparseActivations, folder: Path, options: Options, scratch: Path) -> float:  # noqa: ARG002
        from bm25s import BM25
        from scipy.sparse import csr_array

        rows = csr_array(
            (np.asarray(vectors.weights), np.asarray(vectors.units), np.asarray(vectors.indptr)),
            shape=(vectors.num_rows, vectors.num_units),
        )

        def build() -> None:
            columns = rows.tocsc()
            index = BM25(backend="numba")
            index.nonoccurrence_array = None
            index.vocab_dict = {str(unit): unit for unit in range(vectors.num_units)}
            index.scores = {
                "data": columns.data,
                "indices": columns.indices.astype(np.int32),
                "indptr": columns.indptr.astype(np.int64),
                "num_docs": vectors.num_rows,
            }
            index.save(folder, show_progress=False)

        return seconds(build)

    def open(self, folder: Path, options: Options) -> None:  # noqa: ARG002
        from bm25s import BM25

        self._index = BM25.load(folder)

    def prepare(self, units: NDArray[np.int32], weights: NDArray[np.float32]) -> Any:  # noqa: ARG002
        return [units.tolist()]

    def search(self, query: Any, k: int, setting: Options) -> Any:  # noqa: ARG002
        return self._index.retrieve(query, k=k, show_progress=False, n_threads=1)

    def hits(self, found: Any) -> Hits:
        ids, scores = found.documents[0], found.scores[0]
        matched = scores > 0
        return ids[matched].astype(np.int64), scores[matched].astype(np.float64)
