"""The vectors that engines are compared on, made once and kept, with the exact answers."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evals.search_bench.csr_file import CsrFileWriter, check_csr_file, map_csr_file, write_csr_file
from runtime.activations import SparseActivations
from runtime.errors import FormatError, UsageError
from runtime.progress import progress

SEED = 0
DOCUMENTS, QUERIES = "documents.csr", "queries.csr"


@dataclass(frozen=True)
class Workload:
    """Documents and queries in files.

    Attributes:
        name: tells workloads apart.
        folder: for what is derived from them: exact answers, indexes.
        documents: CSR file.
        queries: CSR file.
    """

    name: str
    folder: Path
    documents: Path
    queries: Path

    def queries_for(self, takes_weights: bool) -> Path:
        """The file of queries, or of the same ones with all weights 1."""
        if takes_weights:
            return self.queries
        path = self.folder / "queries.unweighted.csr"
        if not path.exists():
            given = map_csr_file(self.queries)
            ones = np.ones(given.nnz, np.float32)
            write_csr_file(path, SparseActivations(given.indptr, given.units, ones, given.num_units))
        return path

    def truths(self, depths: list[int], takes_weights: bool) -> dict[int, Path]:
        """Files with the exact top k for each k, made where they are missing."""
        from evals.search_bench.truth import exact_truths, save_truth

        kind = "" if takes_weights else ".unweighted"
        paths = {k: self.folder / f"exact-{k}{kind}.npz" for k in depths}
        missing = [k for k, path in paths.items() if not path.exists()]
        if missing:
            queries = map_csr_file(self.queries_for(takes_weights))
            for k, truth in exact_truths(map_csr_file(self.documents), queries, missing).items():
                save_truth(paths[k], truth)
        return paths


def synthetic_workload(cache: Path, documents: int, queries: int) -> Workload:
    """Generated vectors, see `splade_like`."""
    from evals.search_bench.splade_like import NUM_TERMS, SpladeLike

    workload = _workload(cache, f"synthetic-{documents}-{queries}")
    world = SpladeLike(SEED)
    if not workload.documents.exists():
        with (
            progress("generating", documents) as advance,
            CsrFileWriter(workload.documents, NUM_TERMS) as out,
        ):
            for chunk in world.document_chunks(documents):
                out.append(chunk)
                advance(chunk.num_rows)
    if not workload.queries.exists():
        write_csr_file(workload.queries, world.queries(queries, documents))
    return workload


def real_workload(cache: Path, data: Path, model: str, documents: int | None, queries: int) -> Workload:
    """Real passages and real queries, see `real_passages`.

    Args:
        documents: the first so many passages; None for all.
    """
    from evals.search_bench.real_passages import real_queries, write_real_passages

    key = hashlib.blake2b(str(data.resolve()).encode(), digest_size=4).hexdigest()
    every = _workload(cache, f"real-{key}")
    if not every.documents.exists():
        write_real_passages(data, every.documents)
    workload = _workload(cache, f"real-{key}-{documents or 'all'}-{model}-{queries}")
    _link_rows(every.documents, workload.documents, documents)
    if not workload.queries.exists():
        write_csr_file(workload.queries, real_queries(data, model, queries))
    return workload


def given_workload(cache: Path, documents: Path, queries: Path, rows: int | None, count: int) -> Workload:
    """Vectors in files of the caller.

    Args:
        rows: the first so many documents; None for all.
        count: the first so many queries.

    Raises:
        FormatError: documents and queries differ in their number of units, or a file is damaged.
        InputError: a column out of range, or a weight that is negative or not finite.
    """
    both = map_csr_file(documents), map_csr_file(queries)
    if both[0].num_units != both[1].num_units:
        raise FormatError(
            f"{documents} has {both[0].num_units:,} units and {queries} {both[1].num_units:,}; they must be of one "
            "vocabulary"
        )
    # Engines trust what they are given: an impossible offset or column would end their processes.
    for path in (documents, queries):
        check_csr_file(path)
    stamps = [
        f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in (documents, queries)
    ]
    key = hashlib.blake2b("\n".join(stamps).encode(), digest_size=6).hexdigest()
    workload = _workload(cache, f"{documents.name.removesuffix('.csr')}-{key}-{rows or 'all'}-{count}")
    _link_rows(documents, workload.documents, rows)
    _link_rows(queries, workload.queries, count)
    return workload


def _workload(cache: Path, name: str) -> Workload:
    folder = cache / name
    folder.mkdir(parents=True, exist_ok=True)
    return Workload(name, folder, folder / DOCUMENTS, folder / QUERIES)


def _link_rows(source: Path, path: Path, count: int | None) -> None:
    """Make `path` the first `count` rows of `source`; a link where that is all of them."""
    if path.exists():
        return
    rows = map_csr_file(source)
    if rows.num_rows == 0:
        raise UsageError(f"{source} has no rows; there is nothing to measure")
    if count is None or count >= rows.num_rows:
        path.unlink(missing_ok=True)
        os.symlink(source.resolve(), path)
    else:
        write_csr_file(path, rows[:count])
