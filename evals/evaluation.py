"""Evaluating an encoder on a collection: index (or reuse the index), search, measure, save."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evals.collections.collection import Collection, Qrels
from evals.metrics import mean, measure, require_ir_measures
from evals.report import PLOT_FILE, REPORT_FILE, RUN_FILE, Report, require_folder
from retrieval.interop.trec_run import Run, write_run
from runtime.errors import InputError, UsageError
from runtime.folder_bytes import folder_bytes
from runtime.progress import progress

if TYPE_CHECKING:
    from retrieval import SparseEncoder, SparseIndex
    from retrieval.index.dense_index import DenseIndex

WORKSPACE = Path(".lexpert")
"""Where indexes and reports go unless told otherwise, under the current directory."""

DENSE = "dense="
"""What stands before the folder of a dense encoder, where sparse ones are named as well."""

QUERY_BATCH = 512
"""Queries encoded and searched at once: enough for all cores, few enough for progress."""


@dataclass(frozen=True)
class Evaluation:
    """A report, the run that it was measured on, and the folder where both were saved."""

    report: Report
    run: Run
    folder: Path


def evaluate(
    collection: Collection,
    encoder: SparseEncoder | str | Path,
    *,
    out: Path | None = None,
    indexes: Path | None = None,
    k: int = 1000,
    memory: int = 1 << 30,
    workers: int | None = None,
    plot: bool = True,
) -> Evaluation:
    """Evaluate an encoder on a collection and save report.json, per_query.tsv, run.trec and plot.png.

    The index is built at `index_path` and reused by every later evaluation with the same encoder and the same
    documents, whatever the split.

    Args:
        encoder: an encoder, what `SparseEncoder.load` takes, or ``dense=FOLDER`` for a dense one, whose vectors are
            searched exactly by inner product.
        out: folder of the report; None is ``.lexpert/reports/COLLECTION-SPLIT-ENCODER``, with the report's
            origin behind it where that holds the report of others of the same names.
        indexes: folder under which indexes are kept; None is ``out/indexes``, or ``.lexpert/indexes`` without
            an `out`.
        k: results asked for a query; below 1000, R@1000 and MAP see only these.
        memory: bound for the index writer, in bytes.
        workers: processes that encode and build; None lets the writer choose.
        plot: whether to draw plot.png.

    Raises:
        UsageError: k below 1.
        InputError: a malformed document, no document at all, or an id that a run file cannot hold.
        ConflictError: a file lies where a folder is to be.
        NotFoundError: no such encoder, or the packages of ``lexpert[eval]`` are missing.
    """
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    require_ir_measures()
    label = encoder_label(encoder)
    origin = origin_of(collection, encoder)
    folder = out or _report_folder(_folder_name(collection.name, collection.split, label), origin)
    under = indexes or (out or WORKSPACE) / "indexes"
    for needed in (folder, under):
        require_folder(needed)
    if next(iter(collection.corpus), None) is None:
        raise InputError(f"{collection.corpus.name} holds no documents; nothing can be found in it")
    dense = _dense_folder(encoder)
    if dense is None:
        indexed = _index_sparse(collection, encoder, label, under, memory, workers)
    else:
        indexed = _index_dense(collection, dense, label, under)
    try:
        run, search_seconds = search_collection(indexed.index, collection, k)
        fingerprint = indexed.index.encoder.fingerprint
    finally:
        indexed.close()

    per_query = measure_run(run, collection.qrels, relevance_level=collection.relevance_level)
    report = Report(
        collection=collection.name,
        split=collection.split,
        encoder=label,
        metrics=mean(per_query),
        queries=len(collection.queries),
        unanswered=sum(not run.get(query) for query in collection.queries),
        documents=indexed.index.num_documents,
        corpus=indexed.losses,
        relevance_level=collection.relevance_level,
        k=k,
        seconds={"index": round(indexed.seconds, 3), "search": round(search_seconds, 3)},
        queries_per_second=round(len(collection.queries) / search_seconds, 1) if search_seconds else None,
        index={
            "path": str(indexed.path),
            "action": indexed.action,
            "bytes": folder_bytes(indexed.path),
        },
        encoder_fingerprint=fingerprint,
        origin=origin,
        per_query=per_query,
    )
    return save_evaluation(report, run, folder, plot)


def save_evaluation(report: Report, run: Run, folder: Path, plot: bool) -> Evaluation:
    """Write report.json, per_query.tsv, run.trec and, with `plot`, plot.png to `folder`, over what is there."""
    report.save(folder)
    write_run(run, folder / RUN_FILE, tag=report.encoder)
    if plot:
        from evals.plots import plot_report

        plot_report(report, folder / PLOT_FILE)
    return Evaluation(report, run, folder)


@dataclass(frozen=True)
class _Indexed:
    """An index of a collection, open, and what there is to report of it."""

    index: SparseIndex | DenseIndex
    path: Path
    action: str
    seconds: float
    losses: dict[str, int]
    close: Callable[[], None]


def _index_sparse(
    collection: Collection,
    encoder: SparseEncoder | str | Path,
    label: str,
    under: Path,
    memory: int,
    workers: int | None,
) -> _Indexed:
    from retrieval import SparseEncoder, SparseIndex
    from retrieval.index.build import build_index
    from retrieval.index.manifest import VERSION, read_manifest

    loaded = encoder if isinstance(encoder, SparseEncoder) else SparseEncoder.load(encoder)
    path = index_path(under, collection, label, loaded.fingerprint, VERSION)
    started = time.perf_counter()
    built = build_index(path, loaded, collection.corpus, memory=memory, workers=workers)
    seconds = time.perf_counter() - started

    # An encoder that learned its statistics from the corpus is in the index; any other is here already.
    learned = read_manifest(path).encoder.fingerprint != loaded.fingerprint
    index = SparseIndex.open(path, encoder=None if learned else loaded)
    return _Indexed(index, path, built.action, seconds, corpus_losses(path), index.close)


def _index_dense(collection: Collection, folder: Path, label: str, under: Path) -> _Indexed:
    from retrieval.encoders.dense import DenseEncoder
    from retrieval.index.dense_index import VERSION, DenseIndex, build_dense_index

    encoder = DenseEncoder.load(folder)
    path = index_path(under, collection, label, encoder.fingerprint, VERSION)
    built = build_dense_index(path, encoder, collection.corpus)
    index = DenseIndex.open(path, encoder=encoder)
    return _Indexed(
        index, path, built.action, built.seconds, {"replaced": built.replaced, "empty": 0}, lambda: None
    )


def index_path(indexes: Path, collection: Collection, label: str, fingerprint: str, version: int) -> Path:
    """Where `evaluate` keeps the index of a collection: ``INDEXES/COLLECTION-ENCODER-FINGERPRINTS-vVERSION``.

    Args:
        label, fingerprint: of the encoder.
        version: of the index's format.
    """
    # Fingerprints and version are in the name, so that another encoder of the same name, and another lexpert, get an
    # index of their own.
    checksum = collection.corpus.checksum().rpartition(":")[2]
    return indexes / _folder_name(collection.name, label, fingerprint[:8], checksum[:8], f"v{version}")


def origin_of(collection: Collection, encoder: SparseEncoder | str | Path) -> str:
    """Eight hexadecimal digits that stand for where a collection and an encoder lie, whatever their names."""
    if not isinstance(encoder, str | Path):
        source = encoder.fingerprint
    else:
        place = _dense_folder(encoder) or Path(encoder)
        source = str(place.resolve() if place.exists() else encoder)
    return hashlib.sha256(f"{collection.corpus.name}\0{source}".encode()).hexdigest()[:8]


def corpus_losses(index: Path) -> dict[str, int]:
    """The documents that no query can find, of an index that `build_index` filled, in this run or earlier.

    Returns:
        ``replaced``: documents read that gave way to a later one of the same id; ``empty``: documents without
        a single posting.
    """
    from retrieval.index.manifest import read_manifest
    from retrieval.index.segment import Segment

    manifest = read_manifest(index)
    empty = 0
    for entry in manifest.segments:
        segment = Segment(index, entry, manifest.fields, bool(manifest.store))
        for window in range(segment.num_windows):
            rows = slice(*segment.window_documents[window : window + 2])
            sizes = np.diff(segment.window_rows(window, manifest.num_units).indptr)
            empty += int(np.count_nonzero((sizes == 0) & ~segment.deleted[rows]))
    consumed = manifest.source.consumed if manifest.source else manifest.num_documents
    return {"replaced": consumed - manifest.num_documents, "empty": empty}


def search_collection(index: SparseIndex | DenseIndex, collection: Collection, k: int) -> tuple[Run, float]:
    """Search all queries of a collection; self-matches are dropped where the collection says so.

    Returns:
        The run, in the order of the queries, at most `k` documents each; and the seconds that encoding the
        queries and searching took.
    """
    depth = k + 1 if collection.drop_self_matches else k
    run: Run = {}
    # Outside the time taken: the first search compiles kernels and touches every page of the index's tables.
    index.search([next(iter(collection.queries.values()))], k=depth)
    seconds = 0.0
    with progress("searching", total=len(collection.queries), unit="queries") as advance:
        for identifiers in _batches(collection.queries):
            started = time.perf_counter()
            hits = index.search([collection.queries[identifier] for identifier in identifiers], k=depth)
            seconds += time.perf_counter() - started
            for identifier, ids, scores in zip(identifiers, hits.ids, hits.scores, strict=True):
                ranking = list(zip(ids, (float(score) for score in scores), strict=True))
                if collection.drop_self_matches:
                    ranking = [(document, score) for document, score in ranking if document != identifier]
                run[identifier] = ranking[:k]
            advance(len(identifiers))
    return run, seconds


def measure_run(run: Run, qrels: Qrels, *, relevance_level: int = 1) -> dict[str, dict[str, float]]:
    """Measure a run, ranking by ranking in its own order; see `evals.metrics.measure`."""
    rankings = {query: [document for document, _ in ranking] for query, ranking in run.items()}
    return measure(qrels, rankings, relevance_level=relevance_level)


def encoder_label(encoder: SparseEncoder | str | Path) -> str:
    """Short name of an encoder, for tables and folders: ``"bm25"``, or the end of a path or hub name."""
    dense = _dense_folder(encoder)
    if dense is not None:
        return f"dense-{encoder_label(dense)}"
    if isinstance(encoder, str | Path):
        return Path(encoder).resolve().name if Path(encoder).exists() else str(encoder).rpartition("/")[2]
    return encoder.family


def _dense_folder(encoder: SparseEncoder | str | Path) -> Path | None:
    """The folder of a dense encoder that was asked for as ``dense=FOLDER``; None for a sparse one."""
    asked = encoder if isinstance(encoder, str) else ""
    return Path(asked.removeprefix(DENSE)) if asked.startswith(DENSE) else None


def _report_folder(name: str, origin: str) -> Path:
    """``.lexpert/reports/NAME``, or NAME-ORIGIN where the report in NAME is of others of the same names."""
    folder = WORKSPACE / "reports" / name
    try:
        there = json.loads((folder / REPORT_FILE).read_text("utf-8")).get("origin", origin)
    except (OSError, ValueError, AttributeError):  # no report, or none that is worth keeping
        return folder
    return folder if there == origin else folder.with_name(f"{name}-{origin}")


def _batches(queries: Iterable[str]) -> Iterator[list[str]]:
    identifiers = iter(queries)
    while batch := list(islice(identifiers, QUERY_BATCH)):
        yield batch


def _folder_name(*parts: str) -> str:
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-") for part in parts)
