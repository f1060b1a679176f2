"""A sparse index, open for searching: a snapshot of one commit, memory-mapped, shared by processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.encoders.encoder import SparseEncoder
from retrieval.index.arrays import verify_file
from retrieval.index.calibration import Calibration
from retrieval.index.manifest import Manifest, read_manifest
from retrieval.index.scorable import scorable
from retrieval.index.segment import DELETES_FOLDER, SEGMENTS_FOLDER, Segment
from retrieval.index.stored_encoder import StoredEncoder
from retrieval.search.batch import Found, Part, Scratch, search_batch
from retrieval.search.counters import SearchCounters
from retrieval.search.explain import Explanation, explain_score
from retrieval.search.filters import Filter, check_filter, matching
from retrieval.search.hits import Hits
from retrieval.search.traversal import MODES, Traversal, choose_traversal
from runtime.activations import SparseActivations
from runtime.cores import available_cores
from runtime.errors import FormatError, NotFoundError, UsageError

OPEN_ATTEMPTS = 10
"""A writer may replace the commit between reading its manifest and mapping its files; then take the new one."""

FILTERS_REMEMBERED = 8
"""A filter takes a byte a document; applications use few of them, again and again."""

SPLIT_POSTINGS = 1 << 22
"""One query is split over threads when the index has more postings than this; below, starting costs more."""


class SparseIndex:
    """Searches one commit of an index; a writer's later commits do not change it (`open` again to see them).

    May be shared by threads. Opening maps files and takes no longer for a larger index.
    """

    def __init__(
        self, path: Path, manifest: Manifest, segments: list[Segment], encoder: StoredEncoder
    ) -> None:
        """Not for callers: use `open`."""
        self.path = path
        self.manifest = manifest
        self._encoder = encoder
        self._segments = segments
        self._is_large = sum(segment.entry.postings for segment in segments) > SPLIT_POSTINGS
        self._first_rows = list(accumulate((segment.num_documents for segment in segments), initial=0))[:-1]
        self._cores = available_cores()
        self._threads = ThreadPoolExecutor(self._cores, thread_name_prefix="search")
        self._scratch = Scratch()
        self._filtered: dict[str, list[Part]] = {}

    @classmethod
    def open(cls, path: str | Path, *, encoder: SparseEncoder | None = None, warm: bool = False) -> Self:
        """Open the last commit.

        Args:
            path: folder of the index.
            encoder: for queries, instead of loading the one that the index names when the first text comes;
                must have its fingerprint.
            warm: load the compiled search code now instead of with the first query: some tenths of a second,
                once in a process, most of which Numba takes to start; once after an installation, compile it. A
                document is searched for, so that what every search reads is in memory.

        Raises:
            NotFoundError: no index there.
            FormatError: it is damaged, or of an unknown version.
            ConflictError: `encoder` is another than the one that filled the index.
        """
        path = Path(path)
        for _ in range(OPEN_ATTEMPTS):
            manifest = read_manifest(path)
            try:
                segments = [
                    Segment(path, entry, manifest.fields, bool(manifest.store)) for entry in manifest.segments
                ]
                index = cls(path, manifest, segments, StoredEncoder(path, manifest.encoder, encoder))
                if warm:
                    index._warm()
                return index
            except (FileNotFoundError, FormatError) as error:
                if read_manifest(path).generation == manifest.generation:
                    if isinstance(error, FormatError):
                        raise
                    raise FormatError(
                        f"{error.filename} is missing; restore it from a copy or build the index again"
                    ) from error
        raise NotFoundError(f"{path} is replaced faster than it can be opened; try again")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the search threads; the maps go with the last reference to them."""
        self._threads.shutdown()

    @property
    def encoder(self) -> SparseEncoder:
        """The encoder that filled the index; loaded when it is first needed.

        Raises:
            NotFoundError: a model that the index refers to is not there any more.
            FormatError: it has changed since.
        """
        return self._encoder.load()

    def share_encoder(self, other: SparseIndex) -> None:
        """Take the encoder of an index that has the same, so that it is loaded once."""
        self._encoder = other._encoder

    @property
    def num_documents(self) -> int:
        """Documents that are not deleted."""
        return self.manifest.num_documents

    @property
    def generation(self) -> int:
        """Number of the commit."""
        return self.manifest.generation

    @property
    def fields(self) -> dict[str, str]:
        """Kinds of the fields that filters can use."""
        return dict(self.manifest.fields)

    @property
    def segments(self) -> Sequence[Segment]:
        """The segments of the commit, in document order; deleted documents are in there still."""
        return tuple(self._segments)

    @cached_property
    def is_tiered(self) -> bool:
        """Whether any segment is laid out in tiers; all others are searched exactly, whatever is asked for."""
        return any(entry.layout == "tiers" for entry in self.manifest.segments)

    @cached_property
    def _calibration(self) -> Calibration | None:
        """What to aim at a recall by; without tiers that needs no measuring, as every search is exact."""
        if self.manifest.calibration is None and not self.is_tiered:
            return Calibration(documents=self.num_documents, queries=0, held_back=False, points=[])
        return self.manifest.calibration

    # Searching

    def search(
        self,
        queries: Sequence[str] | SparseActivations,
        k: int = 10,
        *,
        filter: Filter | None = None,
        mode: str | None = None,
        effort: float | None = None,
        target_recall: float | None = None,
        threads: int | None = None,
        counters: SearchCounters | None = None,
    ) -> Hits:
        """The `k` best documents of every query: exactly, or, if asked for, most of them and faster.

        Args:
            queries: texts, or vectors over the encoder's units (weights ≥ 0).
            k: results wanted for each query, ≥ 1; as many as there are documents if you like.
            filter: only documents that fulfil it are ranked; see `retrieval.search.filters`.
            mode: "exact" (the default), "exhaustive" (the same results by adding up everything), or
                "approximate" (the default where an effort or a recall is given). Scores are exact in all.
            effort: of an approximate search, the share of a query's postings that is added up, in (0, 1].
            target_recall: the share of the exact results to be found, on average over queries like those that
                the index was calibrated with; the cheapest setting that reached it then is taken.
            threads: at most so many at once; default: one a core.
            counters: adds up what the search did in segments laid out in tiers.

        Raises:
            UsageError: k < 1, a bad filter, a mode, effort or recall that there is not, or a single string in
                place of a sequence of them.
            InputError: vectors with negative or infinite weights, or with units that there are not.
        """
        if isinstance(queries, str):
            raise UsageError("queries must be a sequence of strings; for one query give a list of one")
        if not isinstance(k, int) or k < 1:
            raise UsageError(f"k is {k}, but must be a whole number of at least 1")
        threads = self._cores if threads is None else threads
        if threads < 1:
            raise UsageError(f"threads is {threads}, but must be at least 1")
        if isinstance(queries, SparseActivations):
            vectors = scorable(queries.numpy(), max(self.manifest.num_units, 1))
            unknown: list[list[str]] = [[] for _ in range(len(vectors))]
        else:
            vectors = self.encoder.encode_queries(queries)
            unknown = [self.encoder.unknown_terms(query) for query in queries]
        traversal = self.traversal(k, mode, effort, target_recall)
        found = self.search_vectors(vectors, k, traversal, self._parts(filter), threads, counters)
        return Hits(
            ids=[self.ids(rows) for _, rows in found],
            scores=[scores for scores, _ in found],
            unknown_terms=unknown,
        )

    def traversal(
        self, k: int, mode: str | None = None, effort: float | None = None, target_recall: float | None = None
    ) -> Traversal:
        """The way to search for what a caller asks; see `search`, and there too what it raises."""
        return choose_traversal(mode, effort, target_recall, k, self._calibration)

    def search_filtered(
        self,
        vectors: SparseActivations,
        k: int,
        traversal: Traversal,
        filter: Filter | None,
        threads: int = 1,
    ) -> list[Found]:
        """`search_vectors` among the documents that fulfil a filter; raises UsageError for a bad one."""
        return self.search_vectors(vectors, k, traversal, self._parts(filter), threads)

    def search_vectors(
        self,
        vectors: SparseActivations,
        k: int,
        traversal: Traversal,
        parts: Sequence[Part] | None = None,
        threads: int = 1,
        counters: SearchCounters | None = None,
    ) -> list[Found]:
        """Scores and rows of the best `k` of every query; `vectors` have ascending units and weights > 0."""
        parts = self._parts(None) if parts is None else parts
        return search_batch(
            parts,
            vectors,
            k,
            traversal,
            threads,
            self._threads,
            self._scratch,
            split_parts=self._is_large and len(vectors) < threads,
            counters=counters,
        )

    def _warm(self) -> None:
        """Search in every way for a document of the largest segment, so that code and the first pages are at hand."""
        largest = max(self._segments, key=lambda segment: segment.num_documents, default=None)
        row: tuple[Any, Any] = ([0], [1.0])
        if largest is not None and largest.num_documents:
            row = largest.row(largest.num_documents // 2)
        vector = SparseActivations.from_rows([row], max(self.manifest.num_units, 1))
        for mode in MODES:
            self.search(vector, 10, mode=mode, threads=1)

    def _parts(self, condition: Filter | None) -> list[Part]:
        """The segments, and which of their documents may be results; remembered for the last few filters."""
        if condition is None:
            return self._all_parts
        check_filter(condition, self.manifest.fields)
        key = repr(condition)
        parts = self._filtered.pop(key, None)
        if parts is None:
            parts = []
            for part in self._all_parts:
                allowed = matching(condition, part.segment.fields, part.segment.num_documents)
                if part.segment.has_deletes:
                    allowed &= ~part.segment.deleted
                parts.append(Part.limited(part.segment, part.first_row, allowed))
        self._filtered[key] = parts
        while len(self._filtered) > FILTERS_REMEMBERED:
            self._filtered.pop(next(iter(self._filtered), key), None)
        return parts

    @cached_property
    def _all_parts(self) -> list[Part]:
        return [
            Part.limited(segment, first_row, ~segment.deleted)
            if segment.has_deletes
            else Part(segment, first_row)
            for first_row, segment in zip(self._first_rows, self._segments, strict=True)
        ]

    # Documents

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """The document ids of rows, as `search_vectors` numbers them."""
        if len(self._segments) == 1:
            return self._segments[0].ids.take(rows)
        of_segment = np.searchsorted(self._first_rows, rows, side="right") - 1
        ids = [""] * len(rows)
        for place in np.unique(of_segment).tolist():
            (here,) = np.nonzero(of_segment == place)
            found = self._segments[place].ids.take(rows[here] - self._first_rows[place])
            for position, identifier in zip(here.tolist(), found, strict=True):
                ids[position] = identifier
        return ids

    def _find(self, document_id: str) -> tuple[Segment, int] | None:
        for segment in reversed(self._segments):
            row = int(segment.find([document_id])[0])
            if row >= 0:
                return segment, row
        return None

    def document(self, document_id: str) -> dict[str, Any] | None:
        """What is stored of a document: ``_id``, title and text as far as they are kept, fields; None if unknown."""
        found = self._find(document_id)
        return found[0].document(found[1]) if found else None

    def explain(self, query: str | SparseActivations, document_id: str) -> Explanation:
        """Take apart the score of a document for one query, given as text or as a batch of one vector.

        Raises:
            NotFoundError: no such document.
            UsageError: a batch of several vectors.
        """
        found = self._find(document_id)
        if found is None:
            raise NotFoundError(f"{self.path} has no document {document_id!r}")
        if isinstance(query, SparseActivations):
            vectors, unknown = scorable(query.numpy(), max(self.manifest.num_units, 1)), []
        else:
            vectors, unknown = self.encoder.encode_queries([query]), self.encoder.unknown_terms(query)
        if len(vectors) != 1:
            raise UsageError(f"explain takes one query, but was given a batch of {len(vectors)}")
        segment, row = found
        impacts = segment.impacts(row, vectors.units)
        return explain_score(
            document_id,
            (vectors.units, vectors.weights),
            impacts,
            lambda: segment.row(row),
            self.encoder.vocabulary,
            unknown,
        )

    # Looking after

    def stats(self) -> dict[str, Any]:
        """Counts and sizes: documents, segments by layout, postings, units, bytes on disk, encoder, calibration."""
        manifest = self.manifest
        files = [file for entry in manifest.segments for file in entry.files.values()]
        files += [entry.deletes.file for entry in manifest.segments if entry.deletes]
        files += manifest.encoder.files.values()
        postings = sum(entry.postings for entry in manifest.segments)
        rows = sum(entry.documents for entry in manifest.segments)
        calibration = manifest.calibration
        return {
            "path": str(self.path),
            "generation": manifest.generation,
            "documents": manifest.num_documents,
            "deleted": rows - manifest.num_documents,
            "segments": len(manifest.segments),
            "layouts": dict(sorted(Counter(entry.layout for entry in manifest.segments).items())),
            "impacts": manifest.impacts,
            "postings": postings,
            "units": manifest.num_units,
            "units_per_document": postings / rows if rows else 0.0,
            "bytes": sum(file.bytes for file in files),
            "bytes_per_posting": sum(file.bytes for file in files) / postings if postings else 0.0,
            "fields": dict(manifest.fields),
            "store": manifest.store,
            "encoder": manifest.encoder.family,
            "fingerprint": manifest.encoder.fingerprint,
            "complete": manifest.source.complete if manifest.source else True,
            "calibration": calibration.summary() if calibration else {},
        }

    def verify(self) -> int:
        """Read every file of the commit and compare it with its checksum; returns the bytes read.

        When a writer replaces the commit meanwhile, its files go, and the newer commit is read instead.

        Raises:
            FormatError: the first file that is missing or differs in any byte.
        """
        manifest = self.manifest
        while True:
            try:
                return self._verify(manifest)
            except FormatError:
                newer = read_manifest(self.path)
                if newer.generation == manifest.generation:
                    raise
                manifest = newer

    def _verify(self, manifest: Manifest) -> int:
        checked = 0
        folder = self.path / manifest.encoder.folder
        for name, expected in manifest.encoder.files.items():
            verify_file(folder / name, expected)
            checked += expected.bytes
        for entry in manifest.segments:
            for name, expected in entry.files.items():
                verify_file(self.path / SEGMENTS_FOLDER / entry.name / name, expected)
                checked += expected.bytes
            if entry.deletes:
                verify_file(self.path / DELETES_FOLDER / entry.deletes.name, entry.deletes.file)
                checked += entry.deletes.file.bytes
        return checked
