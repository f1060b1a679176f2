"""Building the index of a corpus on Ray: parts of the corpus become segments wherever there is a core.

Ray Data hands out the parts; a worker reads one, encodes it, and writes it as a segment into a folder of the index
that no commit names. When all are there, the writer takes them over in the order of the corpus and makes one
commit. A counting encoder (BM25) takes two rounds: the first counts, each part with its own numbering of terms;
then terms are numbered over the whole corpus, in order of first appearance, and statistics are taken; the second
writes the segments.

The result equals that of the same build on one machine: the same documents in the same order, the same units, the
same impacts. (A model's impacts equal as far as the model gives the same on the machines that run it; batches are
the same.) A worker that is killed has its part done again by Ray; a build that is killed goes on, when it is run
again, with the parts that are not done yet. The folder of the index must be one that all workers see.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

import runtime.errors
from retrieval.corpus import JsonlCorpus
from retrieval.corpus_parts import CorpusPart, cut_corpus
from retrieval.documents import Document, document_batches, document_text
from retrieval.encoders.catalogue import load_encoder
from retrieval.encoders.encoder import CountingEncoder, SparseEncoder
from retrieval.index.buffer import DocumentBuffer
from retrieval.index.build import BuildReport, calibrate, finish_complete, finish_merges, same_build
from retrieval.index.garbage import PARTS_FOLDER, collect_parts
from retrieval.index.impact_codec import ImpactCodec, checked_codec
from retrieval.index.manifest import FieldKind, SegmentEntry, SourceEntry, read_manifest
from retrieval.index.merge_policy import MergePolicy
from retrieval.index.ray_cluster import ray_cluster
from retrieval.index.segment import SEGMENTS_FOLDER
from retrieval.index.segment_writer import SegmentWriter
from retrieval.index.settings import DEFAULT_MEMORY, MERGE_POLICY, STORABLE
from retrieval.index.statistics import CountedSegment, collection_statistics
from retrieval.index.writer import MODEL_BATCH_DOCUMENTS, IndexWriter
from retrieval.index.writer_segment import WriterSegment
from runtime.activations import SparseActivations
from runtime.errors import ConflictError, FormatError, InputError, LexpertError
from runtime.progress import Advance, progress

PART_BYTES = 32 << 20
"""Text in a part: what a worker holds in memory, with its vectors, and what a killed worker loses."""


@dataclass(frozen=True, slots=True)
class PartReport:
    """What a worker made of a part.

    Attributes:
        part: its number.
        entry: of the segment that holds it, in the folder of parts.
        added, replaced, empty: as in `CommitReport`, of this part alone.
        terms: of a counted part, the terms that its encoder has learnt, in order.
    """

    part: int
    entry: SegmentEntry
    added: int
    replaced: int
    empty: int
    terms: list[str]


def build_index_on_ray(
    out: Path,
    encoder: SparseEncoder,
    corpus: JsonlCorpus,
    *,
    address: str | None = None,
    memory: int = DEFAULT_MEMORY,
    workers: int | None = None,
    fields: Mapping[str, str] | None = None,
    store: Sequence[str] = STORABLE,
    impacts: str = "float32",
    merge_policy: MergePolicy | None = MERGE_POLICY,
    calibrate_queries: Sequence[str] | None = None,
    overwrite: bool = False,
    part_bytes: int = PART_BYTES,
    advance: Advance | None = None,
) -> BuildReport:
    """Index a corpus into the folder `out` with the workers of a Ray cluster.

    What a complete index lacks of its merges and the calibration is done on this machine alone.

    Args:
        out: folder of the index; on storage that all workers share.
        corpus: on such storage too, and not compressed.
        address: of the cluster; None for ``RAY_ADDRESS``, and where that is not set, one on this machine.
        memory: bytes that the writer on this machine should stay within; workers take some 10 times
            `part_bytes` each.
        workers: parts that are encoded at once; default: one a core of the cluster.
        part_bytes: bytes of the corpus in a part.
        advance: called with the number of documents done since the last call, besides the progress shown.

    The others are those of `retrieval.index.build.build_index`, and so are the errors, besides:

    Raises:
        NotFoundError: Ray is not installed, or there is no cluster at the address.
        UsageError: the corpus is compressed.
    """
    started = time.monotonic()
    corpus_checksum, fingerprint = corpus.checksum(), encoder.fingerprint
    fields, store = dict(fields or {}), list(store)
    codec = checked_codec(impacts)
    previous = same_build(out, corpus, corpus_checksum, fingerprint, fields, store, codec, overwrite)
    if previous is not None and previous.source is not None:
        if previous.source.complete:
            return finish_complete(
                out,
                previous,
                encoder,
                started=started,
                memory=memory,
                workers=None,  # of the writer on this machine
                merge_policy=merge_policy,
                calibrate_queries=calibrate_queries,
            )
        if not overwrite:
            raise ConflictError(
                f"{out} holds a build that was cut short; finish it without Ray, or replace it with --overwrite"
            )
    with IndexWriter.create(
        out,
        encoder=encoder,
        fields=fields,
        store=store,
        impacts=codec,
        memory=memory,
        merge_policy=merge_policy,
        overwrite=overwrite,
    ) as writer:
        settings = [corpus_checksum, fingerprint, sorted(fields.items()), store, codec, part_bytes]
        parts = out / f"{PARTS_FOLDER}-{hashlib.sha256(orjson.dumps(settings)).hexdigest()[:12]}"
        collect_parts(out, wanted=parts)
        parts.mkdir(exist_ok=True)
        is_counting = isinstance(encoder, CountingEncoder)
        cuts = list(cut_corpus(corpus.path, part_bytes, None if is_counting else MODEL_BATCH_DOCUMENTS))
        with ray_cluster(address, workers) as cores:
            build = _RayBuild(parts, encoder, writer.fields, store, codec, cuts, cores, advance)
            reports = build.counted_and_weighed() if is_counting else build.encoded()
        for report in reports:
            writer.take_segment(
                parts, report.entry, added=report.added, replaced=report.replaced, empty=report.empty
            )
        consumed = sum(report.added for report in reports)
        done = writer.commit(
            SourceEntry(corpus=corpus_checksum, encoder=fingerprint, consumed=consumed, complete=True)
        )
        finish_merges(writer)
        calibrate(writer, calibrate_queries)
    documents = read_manifest(out).num_documents
    return BuildReport(
        "built", documents, done.added, done.replaced, done.empty, time.monotonic() - started, out
    )


def _report_path(folder: Path, stage: str, part: int) -> Path:
    return folder / f"{stage}-{part:06d}.json"


def _write_report(folder: Path, stage: str, report: PartReport) -> None:
    path = _report_path(folder, stage, report.part)
    temporary = path.with_suffix(f".{uuid.uuid4().hex}")
    content = {**asdict(report), "entry": report.entry.model_dump()}
    temporary.write_bytes(orjson.dumps(content))
    os.replace(temporary, path)


def _read_report(folder: Path, stage: str, part: int) -> PartReport | None:
    """What was made of a part; None where it is not done, or its files are gone or cut short."""
    try:
        content = orjson.loads(_report_path(folder, stage, part).read_bytes())
        report = PartReport(**{**content, "entry": SegmentEntry.model_validate(content["entry"])})
        segment = folder / SEGMENTS_FOLDER / report.entry.name
        sizes = all(
            (segment / name).stat().st_size == file.bytes for name, file in report.entry.files.items()
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return report if sizes else None


class _RayBuild:
    """The rounds of one build."""

    def __init__(
        self,
        folder: Path,
        encoder: SparseEncoder,
        fields: Mapping[str, FieldKind],
        store: Sequence[str],
        impacts: ImpactCodec,
        cuts: Sequence[CorpusPart],
        cores: int,
        advance: Advance | None,
    ) -> None:
        self._folder = folder
        self._encoder = encoder
        self._settings = (str(folder), dict(fields), list(store), impacts)
        self._cuts = cuts
        self._cores = cores
        self._advance = advance

    def encoded(self) -> list[PartReport]:
        """The reports of all parts, encoded by a model."""
        return self._round("encoding", _EncodePart, (self._place_encoder("encoder"),))

    def counted_and_weighed(self) -> list[PartReport]:
        """The reports of all parts, weighed with the statistics of the whole corpus."""
        encoder = self._encoder
        assert isinstance(encoder, CountingEncoder)
        learnt = len(encoder.vocabulary)
        counted = self._round("counting", _CountPart, (self._place_encoder("unfitted"),))
        numbering = [
            np.concatenate(
                [np.arange(learnt, dtype=np.int32), encoder.vocabulary.learn(report.terms)]  # type: ignore[attr-defined]
            )
            for report in counted
        ]
        if not encoder.is_fitted:
            self._fit(encoder, counted, numbering)
        extra = [
            {"counted": orjson.dumps(report.entry.model_dump()), "units": units.tobytes()}
            for report, units in zip(counted, numbering, strict=True)
        ]
        weighed = self._round(
            "weighing", _WeighPart, (self._place_encoder("fitted"), len(encoder.vocabulary)), extra
        )
        return [
            replace(done, added=report.added, replaced=report.replaced, empty=report.empty)
            for done, report in zip(weighed, counted, strict=True)
        ]

    def _fit(
        self,
        encoder: CountingEncoder,
        counted: Sequence[PartReport],
        numbering: Sequence[NDArray[np.int32]],
    ) -> None:
        """Fit the encoder to all that was counted and not replaced by a later document."""
        segments = [WriterSegment(self._folder, report.entry) for report in counted]
        for place, segment in enumerate(segments):
            for earlier in segments[:place]:
                earlier.delete_all_of(segment)
        frequency = np.zeros(len(encoder.vocabulary), np.int64)
        documents = length = 0
        for segment, units in zip(segments, numbering, strict=True):
            opened = CountedSegment(self._folder, segment.entry, segment.deleted)
            here, its_documents, its_length = collection_statistics([opened], len(units))
            frequency[units] += here
            documents += its_documents
            length += its_length
        if not length:
            raise InputError(
                "none of the documents has a term, so there is nothing to learn statistics from; "
                "check that they have a title or a text"
            )
        encoder.fit_statistics(frequency, documents, length)

    def _place_encoder(self, name: str) -> str:
        """Where workers find the encoder as it is now: a model where it came from, or a copy beside the parts."""
        if self._encoder.source is not None and not isinstance(self._encoder, CountingEncoder):
            return self._encoder.source
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)
        self._encoder.save(folder)
        return str(folder)

    def _round(
        self,
        stage: str,
        worker: type,
        arguments: tuple[Any, ...],
        extra: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[PartReport]:
        """Do what is left to do of one stage; the reports of all parts, in order."""
        done = {part.number: _read_report(self._folder, stage, part.number) for part in self._cuts}
        rows = [
            {"part": orjson.dumps(asdict(part)), **(extra[part.number] if extra else {})}
            for part in self._cuts
            if done[part.number] is None
        ]
        if len(rows) < len(self._cuts):
            print(
                f"{stage}: {len(self._cuts) - len(rows):,} of {len(self._cuts):,} parts were done by an earlier run",
                file=sys.stderr,
            )
        with progress(stage) as shown:
            for number, documents in _results(
                rows, worker, (stage, *self._settings, *arguments), self._cores
            ):
                done[number] = _read_report(self._folder, stage, number)
                shown(documents)
                if self._advance:
                    self._advance(documents)
        reports = []
        for part in self._cuts:
            report = done[part.number]
            if report is None:
                raise FormatError(
                    f"part {part.number} was written, but is not in {self._folder}; "
                    "the folder of the index must be on storage that this machine and all workers share"
                )
            reports.append(report)
        return reports


def _results(
    rows: list[dict[str, Any]], worker: type, arguments: tuple[Any, ...], cores: int
) -> Iterator[tuple[int, int]]:
    """Number and documents of each part, as they are done."""
    if not rows:
        return
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.log_internal_stack_trace_to_stdout = False
    with ray.data.DataContext.current(context):
        data = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            worker,
            fn_constructor_args=arguments,
            compute=ray.data.ActorPoolStrategy(size=min(cores, len(rows))),
            num_cpus=1,
        )
        for row in data.iter_rows():
            if row["error"]:
                raise getattr(runtime.errors, row["error"])(row["message"])
            yield row["part"], row["documents"]


class _PartWorker:
    """What the workers of all stages share. They live in processes of Ray's, one part at a time."""

    def __init__(
        self,
        stage: str,
        folder: str,
        fields: Mapping[str, FieldKind],
        store: Sequence[str],
        impacts: ImpactCodec,
        encoder: str,
    ) -> None:
        self._stage = stage
        self._folder = Path(folder)
        self._fields = fields
        self._store = store
        self._impacts = impacts
        self._encoder_folder = encoder

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part = CorpusPart(**orjson.loads(row["part"]))
        result = {"part": part.number, "documents": 0, "error": "", "message": ""}
        try:
            report = self._done(part, row)
        except LexpertError as error:  # the caller's to mend: Ray would wrap it, and log where it was raised
            return {**result, "error": type(error).__name__, "message": str(error)}
        _write_report(self._folder, self._stage, report)
        return {**result, "documents": report.added}

    def _done(self, part: CorpusPart, row: Mapping[str, Any]) -> PartReport:
        raise NotImplementedError

    def _write(self, part: CorpusPart, buffer: DocumentBuffer, num_units: int, counted: bool) -> SegmentEntry:
        # A name of its own for every attempt: the worker that is believed dead may still be writing.
        name = f"{self._stage}-{part.number:06d}-{uuid.uuid4().hex}"
        fields = {} if counted else self._fields
        with SegmentWriter(self._folder, name, fields, counted, self._impacts) as writer:
            for run in buffer.runs(num_units):
                writer.add(run)
            return writer.close()


class _EncodePart(_PartWorker):
    """Encodes a part with a model."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._encoder = load_encoder(self._encoder_folder)

    def _done(self, part: CorpusPart, row: Mapping[str, Any]) -> PartReport:  # noqa: ARG002
        buffer = DocumentBuffer(self._fields, self._store)
        added = replaced = empty = 0
        for batch in document_batches(part, MODEL_BATCH_DOCUMENTS):
            vectors = self._encoder.encode_documents([document_text(document) for document in batch])
            replaced += buffer.add([document["_id"] for document in batch], batch, vectors)
            added += len(batch)
            empty += int(np.count_nonzero(np.diff(vectors.indptr) == 0))
        entry = self._write(part, buffer, len(self._encoder.vocabulary), counted=False)
        return PartReport(part.number, entry, added, replaced, empty, [])


class _CountPart(_PartWorker):
    """Counts the terms of a part; keeps ids, counts and lengths."""

    def _done(self, part: CorpusPart, row: Mapping[str, Any]) -> PartReport:  # noqa: ARG002
        encoder = load_encoder(self._encoder_folder)  # afresh: a part numbers its terms by itself
        assert isinstance(encoder, CountingEncoder)
        learnt = len(encoder.vocabulary)
        buffer = DocumentBuffer({}, ())
        waiting: list[list[str]] = []
        added = replaced = empty = 0

        def texts() -> Iterator[list[str]]:
            for batch in document_batches(part):
                waiting.append([document["_id"] for document in batch])
                yield [document_text(document) for document in batch]

        for counts, lengths in encoder.count_batches(texts()):
            ids = waiting.pop(0)
            replaced += buffer.add(ids, None, counts, lengths)
            added += len(ids)
            empty += int(np.count_nonzero(np.diff(counts.indptr) == 0))
        entry = self._write(part, buffer, len(encoder.vocabulary), counted=True)
        terms = [encoder.vocabulary.term(unit) for unit in range(learnt, len(encoder.vocabulary))]
        return PartReport(part.number, entry, added, replaced, empty, terms)


class _WeighPart(_PartWorker):
    """Turns a counted part into a segment of impacts, with what is stored of its documents."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments[:-1])
        self._num_units = int(arguments[-1])
        encoder = load_encoder(self._encoder_folder)
        assert isinstance(encoder, CountingEncoder)
        self._encoder = encoder

    def _done(self, part: CorpusPart, row: Mapping[str, Any]) -> PartReport:
        entry = SegmentEntry.model_validate(orjson.loads(row["counted"]))
        counted = CountedSegment(self._folder, entry, np.zeros(entry.documents, np.bool_))
        ids = WriterSegment(self._folder, entry).ids
        units = np.frombuffer(row["units"], np.int32)
        last: dict[str, Document] = {}
        for document in part:
            last.pop(document["_id"], None)
            last[document["_id"]] = document
        if len(last) != len(ids):
            raise ConflictError(f"{part.path} has changed while it was read; build again")
        documents = list(last.values())
        buffer = DocumentBuffer(self._fields, self._store)
        start = 0
        for window in counted.windows():
            end = start + window.num_rows
            lengths = np.repeat(counted.lengths[start:end], np.diff(window.indptr))
            numbered = units[window.units]
            impacts = self._encoder.weigh(numbered, window.weights, lengths)
            vectors = SparseActivations(window.indptr, numbered, impacts, self._num_units)
            buffer.add([document["_id"] for document in documents[start:end]], documents[start:end], vectors)
            start = end
        written = self._write(part, buffer, self._num_units, counted=False)
        return PartReport(part.number, written, len(documents), 0, 0, [])
