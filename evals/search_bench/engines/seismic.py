"""Seismic (Bruch, Nardini, Rulli, Venturini 2024) through ``pyseismic-lsr``: clustered blocks with summaries.

The values are 16-bit floats in a plain forward index, or 8-bit ones with compressed components (``dotvbyte``).
Its Python functions ignore the number of threads that they are given, so it is set from the environment; hits come
back in no order that may be relied on.
"""

from __future__ import annotations

import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evals.search_bench.engines.engine import Engine, Hits, Options
from runtime.activations import SparseActivations

INDEX, GRAPH = "index", "graph"
"""Folders of one file each, since the ending that it gets differs between its versions."""


BUILDS = (
    ("f16", 0.1, 0.2, 0.5, 6.0),
    ("f16", 0.2, 0.2, 0.5, 6.0),
    ("f16", 0.4, 0.2, 0.5, 6.0),
    ("f16", 0.7, 0.1, 0.5, 20.0),
    ("dotvbyte", 0.2, 0.2, 0.5, 6.0),
    ("dotvbyte", 0.4, 0.2, 0.5, 6.0),
)
"""Codec, share of all postings, share of centroids, energy of summaries, longest list over the mean.

Its authors keep about a tenth of the postings of MS MARCO with a fifth of centroids and half of the energy; smaller
collections, and flatter weights, need a larger share.
"""


class Seismic(Engine):
    name = "seismic"
    requires = ("seismic",)

    def builds(self, vectors: SparseActivations) -> list[Options]:
        average = vectors.nnz / vectors.num_units
        return [
            {
                "codec": codec,
                "n_postings": max(1, round(share * average)),
                "centroid_fraction": centroids,
                "summary_energy": energy,
                "max_fraction": most,
                "knn": 0,
            }
            for codec, share, centroids, energy, most in BUILDS
        ]

    def settings(self, build: Options, k: int) -> list[Options]:  # noqa: ARG002
        cuts = (3, 5, 8, 12, 20) if k < 100 else (5, 8, 10, 12, 15, 20, 40)
        factors = (0.7, 0.8, 0.9, 1.0) if k < 100 else (0.7, 0.8, 0.9)
        return [
            {"query_cut": cut, "heap_factor": factor, "sorted": ordered}
            for cut, factor, ordered in product(cuts, factors, (True, False))
        ]

    def build(self, vectors: SparseActivations, folder: Path, options: Options, scratch: Path) -> float:
        import seismic

        given = {
            "n_postings": options["n_postings"],
            "centroid_fraction": options["centroid_fraction"],
            "summary_energy": options["summary_energy"],
            "max_fraction": options["max_fraction"],
        }
        if options["codec"] == "f16":
            source = scratch / "documents.bin"
            write_inner_format(vectors, source)
            started = time.perf_counter()
            index = seismic.SeismicIndexRaw.build(str(source), **given)
        else:
            started = time.perf_counter()
            dataset = seismic.SeismicDataset(dim=vectors.num_units)
            for start in range(0, vectors.num_rows, 50_000):
                part = vectors[start : start + 50_000]
                names = [str(row) for row in range(start, start + part.num_rows)]
                units = np.asarray(part.units, np.int64)
                dataset.add_documents_by_id(names, units, np.asarray(part.weights), np.asarray(part.indptr))
            index = seismic.SeismicIndexDotVByte.build_from_dataset(dataset, **given)
        if options["knn"]:
            index.build_knn(options["knn"])
            (folder / GRAPH).mkdir()
            index.save_knn(str(folder / GRAPH / "seismic"))
        (folder / INDEX).mkdir()
        index.save(str(folder / INDEX / "seismic"))
        return time.perf_counter() - started

    def open(self, folder: Path, options: Options) -> None:
        import seismic

        self._raw = options["codec"] == "f16"
        kind = seismic.SeismicIndexRaw if self._raw else seismic.SeismicIndexDotVByte
        self._index = kind.load(str(next((folder / INDEX).iterdir())))
        if options["knn"]:
            self._index.load_knn(str(next((folder / GRAPH).iterdir())))
        self._knn = options["knn"]
        self._string = seismic.get_seismic_string()

    def prepare(self, units: NDArray[np.int32], weights: NDArray[np.float32]) -> Any:
        if self._raw:
            return units.astype(np.int32), weights
        return units.astype(self._string), weights

    def search(self, query: Any, k: int, setting: Options) -> Any:
        given = k, setting["query_cut"], setting["heap_factor"], self._knn, setting["sorted"]
        if self._raw:
            return self._index.search(*query, *given)
        return self._index.search("", *query, *given)

    def hits(self, found: Any) -> Hits:
        if self._raw:
            scores, ids = [hit[0] for hit in found], [hit[1] for hit in found]
        else:
            scores, ids = [hit[1] for hit in found], [int(hit[2]) for hit in found]
        order = np.argsort(-np.array(scores, np.float64), kind="stable")
        return np.array(ids, np.int64)[order], np.array(scores, np.float64)[order]


def write_inner_format(vectors: SparseActivations, path: Path) -> None:
    """Write Seismic's own input: uint32 rows; then a row at a time uint32 length, uint32 units, float32 weights."""
    with path.open("wb") as out:
        out.write(np.array([vectors.num_rows], "<u4").data)
        for start in range(0, vectors.num_rows, 50_000):
            part = vectors[start : start + 50_000]
            lengths = np.diff(part.indptr)
            block = np.empty(2 * part.nnz + part.num_rows, "<u4")
            # A row of n begins where all before it end: one length and twice n words each.
            begins = 2 * np.asarray(part.indptr[:-1]) + np.arange(part.num_rows)
            block[begins] = lengths
            within = np.arange(part.nnz) - np.repeat(part.indptr[:-1], lengths)
            at = np.repeat(begins + 1, lengths) + within
            block[at] = part.units
            block[at + np.repeat(lengths, lengths)] = np.asarray(part.weights, "<f4").view("<u4")
            out.write(block.data)
