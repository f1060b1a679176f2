"""SINDI through ``pyvsag``: windowed exhaustive search over pruned postings, best candidates scored again.

It is exact where nothing is pruned or quantised.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evals.search_bench.engines.engine import Engine, Hits, Options, seconds
from runtime.activations import SparseActivations

WINDOW = 50_000
INDEX = "sindi"


class Sindi(Engine):
    name = "sindi"
    requires = ("pyvsag",)

    def builds(self, vectors: SparseActivations) -> list[Options]:
        most = int(np.diff(vectors.indptr).max(initial=1))
        size = {"num_units": vectors.num_units, "longest": most}
        return [
            {"doc_prune_ratio": 0.0, "use_quantization": False, "use_reorder": False, **size},
            {"doc_prune_ratio": 0.4, "use_quantization": True, "use_reorder": True, **size},
            {"doc_prune_ratio": 0.6, "use_quantization": True, "use_reorder": True, **size},
        ]

    def settings(self, build: Options, k: int) -> list[Options]:
        if not build["use_reorder"]:
            return [{"query_prune_ratio": 0.0, "term_prune_ratio": 0.0, "n_candidate": k}]
        wider = (5, 20, 50) if k < 100 else (2, 5)
        return [
            {"query_prune_ratio": query, "term_prune_ratio": term, "n_candidate": k * factor}
            for query, term, factor in product((0.0, 0.3, 0.5, 0.7), (0.0, 0.3), wider)
        ]

    def _index(self, options: Options) -> Any:
        import pyvsag

        pyvsag.set_logger_off()
        parameters = {
            "dtype": "sparse",
            "metric_type": "ip",
            "dim": options["longest"],
            "index_param": {
                "term_id_limit": options["num_units"],
                "window_size": WINDOW,
                "doc_prune_ratio": options["doc_prune_ratio"],
                "use_quantization": options["use_quantization"],
                "use_reorder": options["use_reorder"],
            },
        }
        return pyvsag.Index("sindi", json.dumps(parameters))

    def build(self, vectors: SparseActivations, folder: Path, options: Options, scratch: Path) -> float:  # noqa: ARG002
        arrays = (
            np.asarray(vectors.indptr).astype(np.uint32),
            np.asarray(vectors.units).astype(np.uint32),
            np.array(vectors.weights),
            np.arange(vectors.num_rows, dtype=np.int64),
        )

        def build() -> None:
            index = self._index(options)
            index.build(*arrays)
            index.save(str(folder / INDEX))

        return seconds(build)

    def open(self, folder: Path, options: Options) -> None:
        self._opened = self._index(options)
        self._opened.load(str(folder / INDEX))

    def prepare(self, units: NDArray[np.int32], weights: NDArray[np.float32]) -> Any:
        return np.array([0, len(units)], np.uint32), units.astype(np.uint32), np.array(weights, np.float32)

    def search(self, query: Any, k: int, setting: Options) -> Any:
        return self._opened.knn_search(*query, k, self._parameters(setting))

    def _parameters(self, setting: Options) -> str:
        # One setting is used for many queries in a row.
        if getattr(self, "_last", None) is not setting:
            self._last, self._text = setting, json.dumps({"sindi": dict(setting)})
        return self._text

    def hits(self, found: Any) -> Hits:
        # For sparse queries the numbers come first, unlike for dense ones.
        ids, distances = (np.asarray(array).ravel() for array in found)
        order = np.argsort(distances, kind="stable")
        return ids[order].astype(np.int64), 1 - distances[order].astype(np.float64)
