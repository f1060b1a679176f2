"""SciPy's product of a sparse query with the sparse transposed documents: exact, and nothing to tune."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evals.search_bench.engines.engine import Engine, Hits, Options, seconds
from runtime.activations import SparseActivations

PARTS = ("data", "indices", "indptr", "shape")


class ScipyProduct(Engine):
    name = "scipy"
    requires = ("scipy",)

    def builds(self, vectors: SparseActivations) -> list[Options]:  # noqa: ARG002
        return [{}]

    def settings(self, build: Options, k: int) -> list[Options]:  # noqa: ARG002
        return [{}]

    def build(self, vectors: SparseActivations, folder: Path, options: Options, scratch: Path) -> float:  # noqa: ARG002
        from scipy.sparse import csr_array

        rows = csr_array(
            (np.asarray(vectors.weights), np.asarray(vectors.units), np.asarray(vectors.indptr)),
            shape=(vectors.num_rows, vectors.num_units),
        )

        def build() -> None:
            postings = rows.T.tocsr()
            for part in PARTS:
                np.save(folder / f"{part}.npy", np.asarray(getattr(postings, part)))

        return seconds(build)

    def open(self, folder: Path, options: Options) -> None:  # noqa: ARG002
        from scipy.sparse import csr_array

        data, indices, indptr, shape = (np.load(folder / f"{part}.npy") for part in PARTS)
        self._postings = csr_array((data, indices, indptr), shape=tuple(shape.tolist()))

    def prepare(self, units: NDArray[np.int32], weights: NDArray[np.float32]) -> Any:
        from scipy.sparse import csr_array

        shape = (1, self._postings.shape[0])
        return csr_array((weights, units, np.array([0, len(units)])), shape=shape)

    def search(self, query: Any, k: int, setting: Options) -> Any:  # noqa: ARG002
        product = query @ self._postings
        scores, rows = product.data, product.indices
        if k < len(scores):
            best = np.argpartition(scores, len(scores) - k)[len(scores) - k :]
            scores, rows = scores[best], rows[best]
        order = np.argsort(-scores, kind="stable")
        return rows[order], scores[order]

    def hits(self, found: Any) -> Hits:
        rows, scores = found
        return rows.astype(np.int64), scores.astype(np.float64)
