"""Building the index of a corpus: reused when nothing changed, continued when it was cut short."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from retrieval.corpus import Corpus
from retrieval.documents import Document
from retrieval.encoders.encoder import CountingEncoder, SparseEncoder
from retrieval.index.impact_codec import ImpactCodec, checked_codec
from retrieval.index.lock import LOCK_FILE
from retrieval.index.manifest import MANIFEST_FILE, Manifest, SourceEntry, read_manifest
from retrieval.index.merge import TIERED_DOCUMENTS, is_provisional
from retrieval.index.merge_policy import MergePolicy, SegmentSize, plan_merges
from retrieval.index.settings import DEFAULT_MEMORY, MERGE_POLICY, STORABLE
from retrieval.index.writer import CommitReport, IndexWriter
from runtime.errors import ConflictError, FormatError
from runtime.progress import Advance, progress

COMMIT_INTERVAL_S = 300.0
"""A build that is killed loses at most this much encoding."""


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did.

    Attributes:
        action: "built" from nothing, "continued" an earlier run, or "reused" an index that was complete.
        documents: live documents in the index now.
        added: documents read in this run.
        replaced: of these, how many took the place of an earlier document of the same id.
        empty: of these, how many light up no unit.
        seconds: wall-clock time.
        path: folder of the index.
    """

    action: Literal["built", "continued", "reused"]
    documents: int
    added: int
    replaced: int
    empty: int
    seconds: float
    path: Path


def build_index(
    out: Path,
    encoder: SparseEncoder,
    corpus: Corpus,
    *,
    memory: int = DEFAULT_MEMORY,
    workers: int | None = None,
    fields: Mapping[str, str] | None = None,
    store: Sequence[str] = STORABLE,
    impacts: str = "float32",
    overwrite: bool = False,
    merge_policy: MergePolicy | None = MERGE_POLICY,
    calibrate_queries: Sequence[str] | None = None,
    commit_interval_s: float = COMMIT_INTERVAL_S,
) -> BuildReport:
    """Index a corpus into the folder `out`.

    A complete index of the same corpus, encoder, fields, store and impacts is left as it is, but for merges and the
    calibration, where an earlier run was ended before it had done them.

    A run that was cut short is continued after its last commit; where there is none (an encoder that has to see the
    whole collection before its first weight, or a run cut short early) it starts over.

    Args:
        calibrate_queries: held-back queries for `IndexWriter.calibrate`, which ends a build of an index that is
            large enough for it, and is done anew for a complete one; None for queries made from documents.

    The others are those of `IndexWriter.create`.

    Raises:
        ConflictError: `out` holds something else, or is being written; `overwrite` replaces the
            former, but goes on with what the same build left.
    """
    started = time.monotonic()
    corpus_checksum, encoder_fingerprint = corpus.checksum(), encoder.fingerprint
    fields, store = dict(fields or {}), list(store)
    previous = same_build(
        out, corpus, corpus_checksum, encoder_fingerprint, fields, store, checked_codec(impacts), overwrite
    )
    consumed = 0
    if previous is not None and previous.source is not None:
        if previous.source.complete:
            return finish_complete(
                out,
                previous,
                encoder,
                started=started,
                memory=memory,
                workers=workers,
                merge_policy=merge_policy,
                calibrate_queries=calibrate_queries,
            )
        consumed = previous.source.consumed
        writer = IndexWriter.open(
            out, encoder=encoder, memory=memory, workers=workers, merge_policy=merge_policy
        )
        print(f"{out}: continuing after document {consumed:,} of the earlier run", file=sys.stderr)
    else:
        is_leftover = (out / LOCK_FILE).exists() and not (out / MANIFEST_FILE).exists()
        writer = IndexWriter.create(
            out,
            encoder=encoder,
            fields=fields,
            store=store,
            impacts=impacts,
            memory=memory,
            workers=workers,
            merge_policy=merge_policy,
            overwrite=overwrite,
        )
        if is_leftover:
            print(f"{out}: an earlier run had committed nothing; starting over", file=sys.stderr)
    with writer:
        build = _Build(writer, corpus_checksum, encoder_fingerprint, consumed, commit_interval_s)
        with progress("indexing", _remaining(corpus, consumed)) as advance:
            build.run(islice(iter(corpus), consumed, None), advance)
        finish_merges(writer)
        calibrate(writer, calibrate_queries)
    return BuildReport(
        "continued" if previous else "built",
        read_manifest(out).num_documents,
        sum(report.added for report in build.reports),
        sum(report.replaced for report in build.reports),
        sum(report.empty for report in build.reports),
        time.monotonic() - started,
        out,
    )


def finish_merges(writer: IndexWriter) -> None:
    """Commit, and wait for the merges that go on, with progress where there are any."""
    if writer.has_changes:
        writer.commit()
    if writer.is_merging:
        with progress("merging") as advance:
            writer.finish_merges(advance)


def calibrate(writer: IndexWriter, queries: Sequence[str] | None) -> None:
    """Calibrate with progress, where there is anything to search approximately; says so where queries were in vain."""
    if writer.has_tiers:
        with progress("calibrating", unit="searches") as advance:
            writer.calibrate(queries, advance)
    elif queries is not None:
        print(
            f"{writer.path}: nothing to calibrate; no merge has laid out {TIERED_DOCUMENTS:,} documents or more for "
            "approximate search, so every search is exact",
            file=sys.stderr,
        )


def finish_complete(
    out: Path,
    previous: Manifest,
    encoder: SparseEncoder,
    *,
    started: float,
    memory: int,
    workers: int | None,
    merge_policy: MergePolicy | None,
    calibrate_queries: Sequence[str] | None,
) -> BuildReport:
    """Do what is left when a build ended, or was ended, after its last document: merges and the calibration.

    The arguments are those of `build_index`; `previous` is its last commit, and `started` when this run began, by
    `time.monotonic`. The report says "continued" where anything was done, else "reused".
    """

    def report(action: Literal["continued", "reused"]) -> BuildReport:
        return BuildReport(action, previous.num_documents, 0, 0, 0, time.monotonic() - started, out)

    sizes = [
        SegmentSize(
            entry.documents, entry.documents - entry.live, entry.postings, is_provisional(entry, entry.live)
        )
        for entry in previous.segments
    ]
    has_merges = merge_policy is not None and bool(plan_merges(sizes, merge_policy))
    has_tiers = any(entry.layout == "tiers" for entry in previous.segments)
    is_uncalibrated = has_tiers and previous.calibration is None
    if not has_merges and not is_uncalibrated and calibrate_queries is None:
        return report("reused")
    # A counting encoder that is not fitted is not the one that the index holds by now.
    given = encoder if encoder.fingerprint == previous.encoder.fingerprint else None
    with IndexWriter.open(
        out, encoder=given, memory=memory, workers=workers, merge_policy=merge_policy
    ) as writer:
        if has_merges:
            writer.commit()  # starts the first
        finish_merges(writer)
        calibrate(writer, calibrate_queries)
        is_changed = has_merges or writer.has_tiers
    return report("continued" if is_changed else "reused")


class _Build:
    """One run of a build: adds documents and commits from time to time."""

    def __init__(
        self, writer: IndexWriter, corpus: str, encoder: str, consumed: int, commit_interval_s: float
    ) -> None:
        self.writer = writer
        self.corpus = corpus
        self.encoder = encoder
        self.consumed = consumed
        self.commit_interval_s = commit_interval_s
        self.reports: list[CommitReport] = []

    def run(self, documents: Iterator[Document], advance: Advance) -> None:
        encoder = self.writer.encoder
        # A first commit would fit a counting encoder, so that has to wait for the whole collection.
        commits_early = not isinstance(encoder, CountingEncoder) or encoder.is_fitted
        committed_at = time.monotonic()

        def taken(documents: int) -> None:
            nonlocal committed_at
            self.consumed += documents
            advance(documents)
            if commits_early and time.monotonic() - committed_at >= self.commit_interval_s:
                self._commit(complete=False)
                committed_at = time.monotonic()

        self.writer.add(documents, taken)
        self._commit(complete=True)

    def _commit(self, complete: bool) -> None:
        source = SourceEntry(
            corpus=self.corpus, encoder=self.encoder, consumed=self.consumed, complete=complete
        )
        self.reports.append(self.writer.commit(source))


def _remaining(corpus: Corpus, consumed: int) -> int | None:
    return None if corpus.num_documents is None else corpus.num_documents - consumed


def same_build(
    out: Path,
    corpus: Corpus,
    corpus_checksum: str,
    encoder_fingerprint: str,
    fields: Mapping[str, str],
    store: Sequence[str],
    impacts: ImpactCodec,
    overwrite: bool,
) -> Manifest | None:
    """The commit that an earlier run of the same build left; None where there is none, or it may be replaced.

    Raises:
        ConflictError: there is an index that came from anything else, and `overwrite` does not allow to replace it.
        FormatError: the same for one that is damaged or of an unknown version.
    """
    if not (out / MANIFEST_FILE).exists():
        return None
    try:
        previous = read_manifest(out)
    except FormatError as error:
        if overwrite:
            return None
        raise FormatError(f"{error} (--overwrite replaces it)") from error
    source = previous.source
    if source is None:
        difference = "was changed or filled by hand"
    elif source.corpus != corpus_checksum:
        difference = f"is of another corpus than {corpus.name}, or that has changed since"
    elif encoder_fingerprint not in (source.encoder, previous.encoder.fingerprint):
        difference = f"was built with another encoder ({previous.encoder.family})"
    elif dict(previous.fields) != dict(fields):
        difference = f"has other fields ({', '.join(previous.fields) or 'none'})"
    elif previous.store != list(store):
        difference = f"stores {', '.join(previous.store) or 'nothing'}"
    elif previous.impacts != impacts:
        difference = f"stores impacts as {previous.impacts}"
    else:
        return previous
    if overwrite:
        return None
    raise ConflictError(f"the index {out} {difference}; give another folder, or --overwrite to replace it")
