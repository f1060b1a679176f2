"""The index writer: documents in, committed segments out, in bounded memory, safe against being killed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.documents import BATCH_DOCUMENTS, Document, check_document, document_batches, document_text
from retrieval.encoders.encoder import CountingEncoder, SparseEncoder
from retrieval.index.arrays import sync_folder
from retrieval.index.background_merge import Merging
from retrieval.index.buffer import DocumentBuffer
from retrieval.index.calibration import Calibration
from retrieval.index.garbage import collect_garbage, collect_parts
from retrieval.index.lock import WriterLock
from retrieval.index.manifest import (
    EncoderEntry,
    Manifest,
    SegmentEntry,
    SourceEntry,
    read_manifest,
    write_manifest,
)
from retrieval.index.merge import is_provisional, merge_segments
from retrieval.index.merge_policy import MergePolicy
from retrieval.index.scorable import scorable
from retrieval.index.segment import SEGMENTS_FOLDER, Segment
from retrieval.index.segment_writer import SegmentWriter
from retrieval.index.settings import DEFAULT_MEMORY, MERGE_POLICY, STORABLE, WriterSettings, check_folder
from retrieval.index.statistics import CountedSegment, collection_statistics, weigh_segment
from retrieval.index.stored_encoder import StoredEncoder, store_encoder
from retrieval.index.writer_segment import WriterSegment
from runtime.activations import SparseActivations
from runtime.errors import FormatError, InputError, NotFoundError, UsageError

BATCH_ROWS = 1 << 14
BATCH_POSTINGS = 1 << 20
"""Vectors that are taken at a time: few enough that the buffer does not grow far beyond its bound."""

MODEL_BATCH_DOCUMENTS = 256
"""Documents that a model encodes at a time: enough to sort by length, few enough for progress and commits."""

Batch = tuple[Sequence[Document], SparseActivations, NDArray[np.int64] | None]


@dataclass(frozen=True, slots=True)
class CommitReport:
    """What became of the documents since the commit before.

    Attributes:
        generation: number of the commit.
        added: documents taken in.
        replaced: documents that gave way to a later one of the same id, in the index or among those added.
        deleted: documents deleted by id.
        empty: added documents that light up no unit; they are kept, but no query finds them.
    """

    generation: int
    added: int = 0
    replaced: int = 0
    deleted: int = 0
    empty: int = 0


class IndexWriter:
    """Adds, replaces and deletes documents; nothing is visible or lasting before `commit`.

    Use it as a context manager: leaving it commits, leaving it by an exception gives up what was not
    committed. One writer per index at a time, across processes; readers are never in the way.

    Segments are merged in the background, as `merge_policy` says, while documents are added. A merge that is done
    enters with the next commit; leaving the context, or `finish_merges`, waits for those that go on.

    Documents are ``{"_id", "title", "text", …}``; an id that is there already is replaced.
    """

    def __init__(
        self,
        path: Path,
        lock: WriterLock,
        encoder: StoredEncoder | SparseEncoder,
        committed: Manifest | None,
        settings: WriterSettings,
    ) -> None:
        """Not for callers: use `create` or `open`."""
        self.path = path
        self._encoder = encoder
        self.fields = dict(settings.fields)
        self.store = list(settings.store)
        self.impacts = settings.impacts
        self._lock = lock
        self._workers = settings.workers
        self._buffer_bytes = settings.buffer_bytes(
            counts_text=isinstance(encoder, (CountingEncoder, StoredEncoder))
        )
        self._generation = committed.generation if committed else 0
        self._source = committed.source if committed else None
        self._calibration = committed.calibration if committed else None
        self._is_new = committed is None
        self._is_closed = False
        # An encoder given for an index that has one already: the index refers to its new place from now on.
        self._has_moved_encoder = isinstance(encoder, StoredEncoder) and encoder.is_loaded
        self._stored_encoder: tuple[EncoderEntry, int] | None = (
            (committed.encoder, committed.num_units) if committed else None
        )
        self._segments = [WriterSegment(path, entry) for entry in committed.segments] if committed else []
        self._buffer = DocumentBuffer(self.fields, self.store)
        self._builders = settings.builders
        self._merges_alone = settings.merges_alone
        self._builder = ThreadPoolExecutor(self._builders, thread_name_prefix="segment")
        self._building: deque[Future[WriterSegment]] = deque()
        self._segment_number = 0
        self._merging = Merging(
            path, settings.merge_policy, self._next_segment_name, self._open_segment, self._merge_opened
        )
        self._report = CommitReport(self._generation)

    # Opening and closing

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        encoder: SparseEncoder,
        fields: Mapping[str, str] | None = None,
        store: Sequence[str] = STORABLE,
        impacts: str = "float32",
        memory: int = DEFAULT_MEMORY,
        workers: int | None = None,
        merge_policy: MergePolicy | None = MERGE_POLICY,
        overwrite: bool = False,
    ) -> Self:
        """Start a new index.

        Args:
            path: folder of the index; created if missing.
            encoder: turns documents into vectors. A counting encoder (BM25) that is not fitted yet takes its
                statistics from what is added before the first commit.
            fields: ``{name: "int" | "float" | "keyword"}`` of document keys to keep for filters.
            store: which of title and text to keep for answers.
            impacts: "float32", or "uint8" for a quarter of the bytes and scores within a known error of the
                exact ones (see `impact_codec`).
            memory: bytes that the writer and its workers should stay within, whatever the size of the
                collection (a large vocabulary of a counting encoder and the weights of a model come on top).
            workers: processes that analyse text; default: one a core, as far as `memory` allows.
            merge_policy: when segments are merged in the background; None for never.
            overwrite: replace an index that is there; it stays readable until the first commit.

        Raises:
            ConflictError: the folder holds an index or other files, or another process writes to it.
            UsageError: a bad field, store or memory setting.
        """
        path = Path(path)
        settings = WriterSettings.checked(fields or {}, store, impacts, memory, workers, merge_policy)
        check_folder(path, overwrite)
        lock = WriterLock(path)
        try:
            previous = _readable(path)
            writer = cls(path, lock, encoder, None, settings)
            writer._generation = previous.generation if previous else 0
            collect_garbage(path, previous)
        except BaseException:
            lock.release()
            raise
        return writer

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        encoder: SparseEncoder | None = None,
        memory: int = DEFAULT_MEMORY,
        workers: int | None = None,
        merge_policy: MergePolicy | None = MERGE_POLICY,
    ) -> Self:
        """Open an index to change it; the arguments are those of `create`.

        Raises:
            NotFoundError: there is no index.
            ConflictError: another process writes to it, or `encoder` is not the one that filled it.
            FormatError: it is damaged or of an unknown version.
        """
        path = Path(path)
        WriterSettings.checked({}, (), "float32", memory, workers, merge_policy)
        read_manifest(path)  # says what is wrong with the folder before a lock file is made in it
        lock = WriterLock(path)
        try:
            committed = read_manifest(path)
            opened = StoredEncoder(path, committed.encoder, encoder)
            settings = WriterSettings.checked(
                committed.fields, committed.store, committed.impacts, memory, workers, merge_policy
            )
            writer = cls(path, lock, opened, committed, settings)
            collect_garbage(path, committed)
        except BaseException:
            lock.release()
            raise
        return writer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish_merges()
        finally:
            self.close()

    def close(self) -> None:
        """Give up what was not committed, merges too, and let other writers in."""
        self._merging.abandon()
        self._builder.shutdown(wait=True, cancel_futures=True)
        self._lock.release()
        self._is_closed = True

    @property
    def encoder(self) -> SparseEncoder:
        """The encoder of the index; that of an index opened to be changed is loaded when it is first needed."""
        return self._encoder.load() if isinstance(self._encoder, StoredEncoder) else self._encoder

    # Changing

    @property
    def has_changes(self) -> bool:
        """Whether there is anything to commit (a new index always has)."""
        return self._is_new or self._has_moved_encoder or self._has_changed_documents

    @property
    def _has_changed_documents(self) -> bool:
        return self._report != CommitReport(self._report.generation)

    @property
    def num_segments(self) -> int:
        """Segments that the last commit, and what was written since, consist of."""
        return len(self._segments)

    def add(self, documents: Iterable[Document], advance: Callable[[int], None] | None = None) -> None:
        """Encode and add documents; an id that is there already is replaced.

        Args:
            documents: read once; memory does not depend on how many there are.
            advance: called with the number of documents done since the last call.

        Raises:
            InputError: a document without a usable `_id`, or a value that its field cannot hold. Whole batches
                that came before it stay taken; close the writer without a commit to give them up.
        """
        self._check_open()
        checked = (
            check_document(document, f"document {number}") for number, document in enumerate(documents, 1)
        )
        for batch, activations, lengths in self._encoded(checked):
            self._take([document["_id"] for document in batch], batch, activations, lengths)
            if advance:
                advance(len(batch))

    def add_vectors(
        self, ids: Sequence[str], activations: SparseActivations, documents: Sequence[Document] | None = None
    ) -> None:
        """Add documents whose vectors are known.

        Args:
            ids: one a row.
            activations: ``[len(ids), units of the encoder]``; repeated units are added up, zeros dropped.
            documents: what to store and filter by, one a row; None for nothing.

        Raises:
            InputError: weights that are negative or not finite, units beyond the vocabulary, unequal lengths.
        """
        self._check_open()
        if len(ids) != activations.num_rows or (documents is not None and len(documents) != len(ids)):
            raise InputError(
                f"{len(ids)} ids, {activations.num_rows} vectors and "
                f"{'no' if documents is None else len(documents)} documents do not go together"
            )
        if isinstance(self.encoder, CountingEncoder) and not self.encoder.is_fitted:
            raise UsageError("vectors cannot be added to an index whose encoder is not fitted yet")
        for row, identifier in enumerate(ids):
            if type(identifier) is not str or not identifier:
                check_document({"_id": identifier}, f"row {row}")
        for row, document in enumerate(documents or ()):
            check_document({**document, "_id": ids[row]}, f"row {row}")
        rows = scorable(activations, max(len(self.encoder.vocabulary), 1))
        start = 0
        while start < len(ids):
            fitting = int(np.searchsorted(rows.indptr, rows.indptr[start] + BATCH_POSTINGS, side="right")) - 1
            end = min(max(fitting, start + 1), start + BATCH_ROWS, len(ids))
            part = rows[start:end]
            # Copied: the buffer outlives this call, and the caller may use his arrays again.
            kept = SparseActivations(part.indptr, part.units.copy(), part.weights.copy(), part.num_units)
            self._take(ids[start:end], documents[start:end] if documents is not None else None, kept)
            start = end

    def take_segment(self, folder: Path, entry: SegmentEntry, added: int, replaced: int, empty: int) -> None:
        """Add the documents of a segment that was written elsewhere, with the encoder of this index.

        Args:
            folder: like that of an index; the segment moves from there, so it must be on the same storage.
            entry: what the segment's writer said of it.
            added, replaced, empty: what to report of it; see `CommitReport`.
        """
        self._check_open()
        self._flush()
        self._finish_building()
        name = self._next_segment_name()
        (self.path / SEGMENTS_FOLDER).mkdir(exist_ok=True)
        (folder / SEGMENTS_FOLDER / entry.name).rename(self.path / SEGMENTS_FOLDER / name)
        report = self._report
        self._report = replace(
            report,
            added=report.added + added,
            replaced=report.replaced + replaced,
            empty=report.empty + empty,
        )
        self._append(WriterSegment(self.path, entry.model_copy(update={"name": name})))

    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents by id and return how many were there."""
        self._check_open()
        wanted = list(dict.fromkeys(ids))
        buffered = [identifier for identifier in wanted if self._buffer.discard(identifier)]
        self._finish_building()
        # A buffered document had replaced the one that the segments still hold.
        replaced = sum(segment.delete(buffered) for segment in self._segments)
        deleted = len(buffered) + sum(segment.delete(wanted) for segment in self._segments)
        report = self._report
        self._report = replace(report, deleted=report.deleted + deleted, replaced=report.replaced + replaced)
        return deleted

    def delete_matching(self, condition: Mapping[str, Any]) -> int:
        """Delete the documents that fulfil a filter (see `retrieval.search.filters`); how many there were.

        Raises:
            UsageError: it is no filter over the fields of the index.
        """
        from retrieval.search.filters import check_filter, matching

        self._check_open()
        check_filter(condition, self.fields)
        self._flush()
        self._finish_building()
        deleted = 0
        for segment in self._segments:
            fields = segment.open_fields(self.path, self.fields)
            deleted += segment.delete_rows(np.flatnonzero(matching(condition, fields, len(segment.deleted))))
        self._report = replace(self._report, deleted=self._report.deleted + deleted)
        return deleted

    def commit(self, source: SourceEntry | None = None) -> CommitReport:
        """Make everything since the last commit durable and visible, all at once.

        Args:
            source: what a build has read up to here; kept in the manifest.
        """
        self._check_open()
        self._flush()
        self._finish_building()
        self._weigh_counted()
        if source is not None:
            self._source = source
        elif self._has_changed_documents:
            # Changed by hand since: no longer what a build of that corpus would give.
            self._source = None
        self._publish()
        generation = self._generation
        report, self._report = replace(self._report, generation=generation), CommitReport(generation)
        self._merging.step(self._segments)
        return report

    def finish_merges(self, advance: Callable[[int], None] | None = None) -> CommitReport:
        """Commit, then wait until all is merged that the policy asks for, and commit that. Results stay the same.

        `advance` is called, in another thread, with the number of documents done since the last call.

        Raises:
            LexpertError: a merge failed, now or since the last call; nothing that was committed is lost.
        """
        self._check_open()
        report = self.commit() if self.has_changes else CommitReport(self._generation)
        if self._merging.is_busy:
            self._merging.advance = advance
            try:
                self._merging.finish(self._segments)
            finally:
                self._merging.advance = None
            if self._merging.has_result:
                self._publish()
        return replace(report, generation=self._generation)

    def publish_merges(self) -> bool:
        """Commit what merges have finished, and start the next; waits for none. Whether there was anything.

        Does nothing while there are changes to commit: their commit takes the merges with it.
        """
        self._check_open()
        if self.has_changes:
            return False
        self._merging.step(self._segments)
        if not self._merging.has_result:
            return False
        self._publish()
        self._merging.step(self._segments)
        return True

    def merge(self, advance: Callable[[int], None] | None = None) -> CommitReport:
        """Commit, then rewrite all segments as one, without deleted documents. Results stay the same.

        `advance` is called with the number of documents done since the last call.
        """
        self._check_open()
        self._merging.abandon()
        report = self.commit() if self.has_changes else CommitReport(self._generation)
        self._merging.abandon()
        if len(self._segments) > 1 or any(
            segment.deleted.any() or is_provisional(segment.entry, segment.live) for segment in self._segments
        ):
            opened = [self._open_segment(segment) for segment in self._segments]
            entry = self._merge_opened(self._next_segment_name(), opened, advance)
            self._segments = [WriterSegment(self.path, entry)]
            self._publish()
        elif self._merging.has_result:
            self._publish()
        return replace(report, generation=self._generation)

    def calibrate(
        self,
        queries: Sequence[str] | SparseActivations | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> Calibration:
        """Commit, then measure what recall approximate search reaches, and commit that; later commits keep it.

        Call it after `finish_merges` or `merge`: what they lay out in tiers is what is searched approximately.

        Args:
            queries: held back, of the kind that will be searched for; None for queries made from documents.
            advance: called with the number of searches done since the last call.

        Raises:
            UsageError: fewer than 8 of the `queries` find anything.
        """
        from retrieval.index.sparse_index import SparseIndex
        from retrieval.search.calibrate import calibrate

        self._check_open()
        if self.has_changes:
            self.commit()
        encoder = self.encoder if self._is_encoder_loaded else None
        with SparseIndex.open(self.path, encoder=encoder) as index:
            self._calibration = calibrate(index, queries, advance=advance)
        self._publish()
        return self._calibration

    @property
    def has_tiers(self) -> bool:
        """Whether any segment of the last commit is laid out in tiers, so that approximate search has a use."""
        return any(segment.entry.layout == "tiers" for segment in self._segments)

    @property
    def is_merging(self) -> bool:
        """Whether `finish_merges` has anything to do."""
        return self._merging.is_busy

    # Inside

    def _encoded(self, documents: Iterator[Document]) -> Iterator[Batch]:
        waiting: deque[list[Document]] = deque()
        encoder = self.encoder

        def texts() -> Iterator[list[str]]:
            size = BATCH_DOCUMENTS if isinstance(encoder, CountingEncoder) else MODEL_BATCH_DOCUMENTS
            for batch in document_batches(documents, size):
                waiting.append(batch)
                yield [document_text(document) for document in batch]

        if not isinstance(encoder, CountingEncoder):
            for batch_texts in texts():
                yield waiting.popleft(), encoder.encode_documents(batch_texts), None
            return
        for counts, lengths in encoder.count_batches(texts(), self._workers):
            if encoder.is_fitted:
                impacts = encoder.weigh(
                    counts.units, counts.weights, np.repeat(lengths, np.diff(counts.indptr))
                )
                counted = SparseActivations(counts.indptr, counts.units, impacts, counts.num_units)
                yield waiting.popleft(), counted, None
            else:
                yield waiting.popleft(), counts, lengths

    def _take(
        self,
        ids: Sequence[str],
        documents: Sequence[Document] | None,
        activations: SparseActivations,
        lengths: NDArray[np.int64] | None = None,
    ) -> None:
        replaced = self._buffer.add(ids, documents, activations, lengths)
        self._report = replace(
            self._report,
            added=self._report.added + len(ids),
            replaced=self._report.replaced + replaced,
            empty=self._report.empty + int(np.count_nonzero(np.diff(activations.indptr) == 0)),
        )
        if self._buffer.bytes > self._buffer_bytes:
            self._flush()

    def _flush(self) -> None:
        """Hand the buffer to a background thread, which inverts and writes it as a segment."""
        if not len(self._buffer):
            return
        while len(self._building) >= self._builders:
            self._finish_oldest()
        if self._merges_alone:
            self._merging.wait(self._segments)
        buffer, self._buffer = self._buffer, DocumentBuffer(self.fields, self.store)
        name, num_units = self._next_segment_name(), len(self.encoder.vocabulary)
        counted = isinstance(self.encoder, CountingEncoder) and not self.encoder.is_fitted
        self._building.append(self._builder.submit(self._build, buffer, name, num_units, counted))

    def _build(self, buffer: DocumentBuffer, name: str, num_units: int, counted: bool) -> WriterSegment:
        with SegmentWriter(self.path, name, self.fields, counted, self.impacts) as writer:
            for run in buffer.runs(num_units):
                writer.add(run)
            return WriterSegment(self.path, writer.close())

    def _finish_building(self) -> None:
        while self._building:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        """Wait for the segment that has been longest in the making."""
        self._append(self._building.popleft().result())

    def _append(self, built: WriterSegment) -> None:
        """Put a segment after the others, and its documents in place of theirs."""
        replaced = sum(segment.delete_all_of(built) for segment in self._segments)
        self._report = replace(self._report, replaced=self._report.replaced + replaced)
        self._segments.append(built)
        self._merging.step(self._segments)

    def _open_segment(self, segment: WriterSegment) -> Segment:
        return Segment(self.path, segment.entry, self.fields, bool(self.store))

    def _merge_opened(
        self, name: str, segments: Sequence[Segment], advance: Callable[[int], None] | None
    ) -> SegmentEntry:
        return merge_segments(
            self.path, name, segments, self.fields, self._num_units, advance, impacts=self.impacts
        )

    def _weigh_counted(self) -> None:
        """Fit the encoder to all that was counted, and turn the counts into impacts."""
        counted = [segment for segment in self._segments if segment.is_counted and segment.live]
        if not counted:
            return
        encoder = self.encoder
        assert isinstance(encoder, CountingEncoder)  # no other kind writes counts
        opened = [CountedSegment(self.path, segment.entry, segment.deleted) for segment in counted]
        frequency, documents, length = collection_statistics(opened, len(encoder.vocabulary))
        if not length and self._is_new:
            raise InputError(
                "none of the documents has a term, so there is nothing to learn statistics from; "
                "check that they have a title or a text"
            )
        if length:  # else there is nothing to weigh either, and documents of a later commit may have terms
            encoder.fit_statistics(frequency, documents, length)
        with ThreadPoolExecutor(self._workers) as threads:
            weighed = threads.map(lambda segment: weigh_segment(segment, encoder), opened)
            for segment, entry in zip(counted, weighed, strict=True):
                segment.entry = entry

    def _publish(self) -> None:
        """Make the next commit: the segments as they are now, with what is deleted of them."""
        generation = self._generation + 1
        for segment in self._segments:
            segment.write_deletes(self.path, generation)
        segments = [segment for segment in self._segments if segment.live]
        num_units = self._num_units
        stored, stored_units = self._stored_encoder or (None, 0)
        # Where nothing needed the encoder, it cannot have changed.
        if (
            stored is None
            or self._has_moved_encoder
            or (
                self._is_encoder_loaded
                and (stored.fingerprint != self.encoder.fingerprint or stored_units != num_units)
            )
        ):
            stored = store_encoder(self.path, generation, self.encoder)
        if segments:
            sync_folder(self.path / SEGMENTS_FOLDER)
        manifest = Manifest(
            generation=generation,
            num_units=num_units,
            encoder=stored,
            fields=self.fields,
            store=self.store,
            impacts=self.impacts,
            segments=[segment.entry for segment in segments],
            calibration=self._calibration,
            source=self._source,
        )
        write_manifest(self.path, manifest)
        self._generation = generation
        self._is_new = self._has_moved_encoder = False
        self._stored_encoder = stored, num_units
        self._segments = segments
        self._merging.has_result = False
        collect_garbage(self.path, manifest, self._merging.unfinished)
        collect_parts(self.path)

    @property
    def _is_encoder_loaded(self) -> bool:
        return not isinstance(self._encoder, StoredEncoder) or self._encoder.is_loaded

    @property
    def _num_units(self) -> int:
        if self._stored_encoder is not None and not self._is_encoder_loaded:
            return self._stored_encoder[1]
        return len(self.encoder.vocabulary)

    def _check_open(self) -> None:
        if self._is_closed:
            raise UsageError(f"the writer of {self.path} is closed; open another one")

    def _next_segment_name(self) -> str:
        self._segment_number += 1
        return f"{self._generation + 1:06d}-{self._segment_number:04d}"


def _readable(path: Path) -> Manifest | None:
    """The manifest of an index that is to be replaced; None where there is none, or none that can be read."""
    try:
        return read_manifest(path)
    except (NotFoundError, FormatError):
        return None
