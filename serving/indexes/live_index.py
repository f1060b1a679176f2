"""One index that is written to: a log of what was answered, a thread that applies it, and commits.

A write is answered when the log has it on the disk. The thread takes whatever has come since, encodes it together,
and commits when somebody waits for that or the policy says so; what comes during a commit is in the next.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from retrieval.encoders.bm25 import Bm25Encoder
from retrieval.index.manifest import read_manifest
from retrieval.index.snapshot import copy_commit
from retrieval.index.sparse_index import SparseIndex
from retrieval.index.writer import IndexWriter
from runtime.activations import SparseActivations
from runtime.errors import InputError, LexpertError, UsageError
from serving.configuration import CommitPolicy
from serving.errors import RETRY, ApiError
from serving.indexes.known_answers import KnownAnswer, KnownAnswers
from serving.indexes.write_log import Write, WriteLog, clear_log, read_log

logger = logging.getLogger("serving")

LOG_FOLDER = "log"

BACKLOG_BYTES = 32 << 20
"""Writes that are durable but not applied yet; beyond it further ones wait before they are answered."""

WRITER_MEMORY = 768 << 20

MERGE_LOOK_S = 0.2
"""How often an idle writer looks whether a merge is done."""

ENOUGH_DOCUMENTS = 100_000
"""BM25 that learned from so many documents is left as it is: twice as many would change little, and take long."""

Operation = dict[str, Any]
"""``{"put": [documents]}``, ``{"delete": [ids]}`` or ``{"delete_matching": filter}``, and ``"known"`` where the request
had a key."""


class LiveIndex:
    """The writer of one index; holds its lock.

    Args:
        folder: of the index.
        uid: which of the indexes that had this folder.
        policy: when to commit.
        learns: whether statistics of a counting encoder are learned anew when the collection has doubled; needs an
            index that keeps title and text.

    Raises:
        ConflictError: another process writes to the index.
        LexpertError: what the log holds cannot be applied, or is damaged.
    """

    def __init__(self, folder: Path, uid: str, policy: CommitPolicy, learns: bool) -> None:
        self.folder = folder
        self.uid = uid
        self._policy = policy
        self._learns = learns
        self._uncommitted: list[tuple[Write, str | None]] = []
        self._uncommitted_documents = self._uncommitted_bytes = 0
        self._oldest = 0.0
        self._writer = IndexWriter.open(folder, memory=WRITER_MEMORY, workers=1)
        try:
            (folder / LOG_FOLDER).mkdir(exist_ok=True)
            self._answers = KnownAnswers(folder / LOG_FOLDER)
            self._recover()
        except BaseException:
            self._writer.close()
            raise
        self._committing = threading.Lock()
        self._changed = threading.Condition()
        self._queue: list[Write] = []
        self._queued_bytes = 0
        self._wants_commit = self._is_closing = self._is_abandoned = False
        self.failure: BaseException | None = None
        self._answering = threading.Lock()
        self._log = WriteLog(folder / LOG_FOLDER, self._accept)
        self._thread = threading.Thread(target=self._run, name=f"index-{folder.name}", daemon=True)
        self._thread.start()

    # From any thread

    def write(self, operation: Operation, known: KnownAnswer | None, wants_commit: bool) -> tuple[Write, Any]:
        """Log a write, unless its key is known; returns it, and the answer that it has or had.

        Raises:
            ApiError: 422 if the key was another request's, 503 if the index cannot be written to.
        """
        if self.failure is not None or self._is_closing:
            raise not_writable(self.failure)
        if known is None:
            write = Write(orjson.dumps(operation), wants_commit)
            self._log.append(write)
            return write, None
        with self._answering:
            found = self._answers.find(known.key)
            if found is not None:
                if found[0].digest != known.digest:
                    raise ApiError(
                        422,
                        "idempotency_key_reused",
                        "this Idempotency-Key was another request's; take a new one for each request",
                        "Idempotency-Key",
                    )
                return found[1] or self._long_committed(), found[0].answer
            fields = {"key": known.key, "digest": known.digest, "answer": known.answer, "at": known.at}
            write = Write(orjson.dumps({**operation, "known": fields}), wants_commit)
            self._answers.note(known, write)
            self._log.append(write)

        def forget_if_lost(done: Future[int]) -> None:
            if done.exception() is not None:
                with self._answering:
                    self._answers.forget(known.key)

        write.durable.add_done_callback(forget_if_lost)
        return write, known.answer

    def knows(self, key: str) -> bool:
        """Whether a request of that key was answered or is worked on."""
        with self._answering:
            return self._answers.find(key) is not None

    def wants_commit(self) -> None:
        """Have what was logged up to now committed soon."""
        with self._changed:
            self._wants_commit = True
            self._changed.notify_all()

    def pending(self) -> tuple[int, int]:
        """Documents that no commit has yet, and bytes of the log that wait to be applied."""
        return self._uncommitted_documents, self._queued_bytes

    def snapshot(self, copy: Path) -> tuple[int, int]:
        """Copy the last commit to a new folder, while no other is made; its version and bytes."""
        with self._committing:
            manifest = read_manifest(self.folder)
            return manifest.generation, copy_commit(self.folder, manifest, copy)

    def close(self) -> None:
        """Apply and commit what was logged, and give up the lock."""
        self._log.close()
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join()
        self._answers.close()
        self._writer.close()

    def abandon(self) -> None:
        """Give up the lock, and what was not committed stays in the log."""
        with self._changed:
            self._is_abandoned = True
            self._changed.notify_all()
        self.close()

    # In the thread of the log

    def _accept(self, writes: Sequence[Write]) -> None:
        with self._changed:
            if self.failure is not None:
                for write in writes:
                    write.committed.set_exception(not_writable(self.failure))
                return
            self._queue += writes
            self._queued_bytes += sum(len(write.record) for write in writes)
            self._wants_commit |= any(write.wants_commit for write in writes)
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._queued_bytes < BACKLOG_BYTES or self.failure is not None or self._is_abandoned
            )

    def _long_committed(self) -> Write:
        write = Write(b"")
        write.durable.set_result(0)
        write.committed.set_result(self.version)
        return write

    # In the thread of the index

    def _run(self) -> None:
        try:
            while self._step():
                pass
            if self._is_abandoned:
                self._fail(LexpertError("the index was deleted"))
        except Exception as error:
            logger.error(
                "the index %s cannot be written to; what was answered is in its log: %s",
                self.folder.name,
                error,
                exc_info=not isinstance(error, LexpertError),
            )
            self._fail(error)

    def _step(self) -> bool:
        """Apply what waits, and commit if that is due; whether to go on."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._queue or self._is_closing or self._is_abandoned or self._is_due,
                timeout=self._patience(),
            )
            writes, self._queue = self._queue, []
            is_closing, is_due = self._is_closing, self._is_due
            if self._is_abandoned:
                self._queue = writes
                return False
            self._wants_commit = False
        self._apply(writes)
        with self._changed:
            self._queued_bytes -= sum(len(write.record) for write in writes)
            self._changed.notify_all()
            is_due |= self._is_due
        if is_due or is_closing:
            self._commit()
        elif not self._uncommitted:
            with self._committing:
                self._writer.publish_merges()
        return not (is_closing and not writes)

    @property
    def _is_due(self) -> bool:
        """Whether a commit should be made, of what is applied or waits to be."""
        if self._wants_commit:
            return True
        return bool(self._uncommitted) and (
            self._uncommitted_documents >= self._policy.documents
            or self._uncommitted_bytes >= self._policy.bytes
            or time.monotonic() - self._oldest >= self._policy.seconds
        )

    def _patience(self) -> float | None:
        """Seconds to wait for further writes."""
        if self._uncommitted:
            return max(0.0, self._oldest + self._policy.seconds - time.monotonic())
        return MERGE_LOOK_S if self._writer.is_merging else None

    def _apply(self, writes: Sequence[Write]) -> None:
        """Take writes into the writer, in their order, encoding as many texts together as come together."""
        if writes and not self._uncommitted:
            self._oldest = time.monotonic()
        waiting: list[dict[str, Any]] = []
        for write in writes:
            operation = orjson.loads(write.record)
            documents = operation.get("put", [])
            for document in documents:
                if waiting and ("vector" in document) != ("vector" in waiting[-1]):
                    self._put(waiting)
                    waiting = []
                waiting.append(document)
            if waiting and not documents:
                self._put(waiting)
                waiting = []
            if "delete" in operation:
                write.deleted = self._writer.delete(operation["delete"])
            elif "delete_matching" in operation:
                write.deleted = self._delete_matching(operation["delete_matching"])
            known = operation.get("known")
            self._uncommitted.append((write, known["key"] if known else None))
            self._uncommitted_documents += len(documents) + write.deleted
            self._uncommitted_bytes += len(write.record)
        if waiting:
            self._put(waiting)

    def _delete_matching(self, condition: dict[str, Any]) -> int:
        try:
            return self._writer.delete_matching(condition)
        except UsageError as error:
            # Checked before it was logged; should that ever differ, the writes after it must not wait for ever.
            logger.error("a filter in the log of the index %s deletes nothing: %s", self.folder.name, error)
            return 0

    def _put(self, documents: Sequence[dict[str, Any]]) -> None:
        """Add documents that all have a vector, or all have none."""
        if "vector" not in documents[0]:
            self._writer.add(documents)
            return
        rows = [(document["vector"]["indices"], document["vector"]["values"]) for document in documents]
        vectors = SparseActivations.from_rows(rows, len(self._writer.encoder.vocabulary))
        self._writer.add_vectors([document["_id"] for document in documents], vectors, documents)

    def _commit(self) -> None:
        """Commit what is applied, and tell those who wait."""
        if not self._uncommitted:
            return
        with self._committing:
            self._log.rotate()
            if self._writer.has_changes:
                self.version = self._writer.commit().generation
            with self._answering:
                for write, key in self._uncommitted:
                    if key is not None:
                        self._answers.committed(key, write.deleted)
                self._answers.save()
            self._log.drop_through(self._uncommitted[-1][0].durable.result())
            writes, self._uncommitted = self._uncommitted, []
            self._uncommitted_documents = self._uncommitted_bytes = 0
            for write, _ in writes:
                write.committed.set_result(self.version)
            self._learn_again()

    def _recover(self) -> None:
        """Apply what the log holds, in one commit: what a commit has already comes out the same again."""
        is_empty = True
        for _, record in read_log(self.folder / LOG_FOLDER):
            is_empty = False
            write = Write(record)
            self._apply([write])
            known = orjson.loads(record).get("known")
            if known is not None and self._answers.find(known["key"]) is None:
                self._answers.note(KnownAnswer(**known), None)
                self._answers.committed(known["key"], write.deleted)
        self._uncommitted = []
        self._uncommitted_documents = self._uncommitted_bytes = 0
        if self._writer.has_changes:
            self._writer.commit()
        self._answers.save()
        if not is_empty:
            clear_log(self.folder / LOG_FOLDER)
        self.version = read_manifest(self.folder).generation

    def _learn_again(self) -> None:
        """Learn the statistics of BM25 from all documents, once they are twice those that it learned from.

        The index is written anew, in one commit, while the last one is searched.
        """
        if not self._learns:
            return
        encoder = self._writer.encoder
        if not isinstance(encoder, Bm25Encoder) or not 0 < encoder.num_documents < ENOUGH_DOCUMENTS:
            return
        with SparseIndex.open(self.folder) as index:
            if index.num_documents < 2 * encoder.num_documents:
                return
            self._writer.close()
            self._writer = IndexWriter.create(
                self.folder,
                encoder=Bm25Encoder(encoder.k1, encoder.b),
                fields=index.manifest.fields,
                store=index.manifest.store,
                impacts=index.manifest.impacts,
                memory=WRITER_MEMORY,
                workers=1,
                overwrite=True,
            )
            try:
                self._writer.add(live_documents(index))
                self.version = self._writer.commit().generation
            except InputError:  # none of the documents that are left has a term to learn from
                self._writer.close()
                self._writer = IndexWriter.open(self.folder, memory=WRITER_MEMORY, workers=1)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self.failure = error
            writes, self._queue = self._queue, []
            self._changed.notify_all()
        for write in [*(write for write, _ in self._uncommitted), *writes]:
            if not write.committed.done():
                write.committed.set_exception(not_writable(error))
        self._writer.close()


def live_documents(index: SparseIndex) -> Iterator[dict[str, Any]]:
    """Every document that is not deleted, in order."""
    for segment in index.segments:
        for row in np.flatnonzero(~segment.deleted).tolist():
            yield segment.document(row)


def not_writable(failure: BaseException | None) -> ApiError:
    """The answer to a write that could not be made, or could be logged but not applied."""
    if failure is None:
        return ApiError(503, "not_ready", "the index is being closed; try again shortly", headers=RETRY)
    return ApiError(
        503,
        "index_not_writable",
        "the index cannot be written to, and the server's log says why; what was answered before is kept, and it "
        "is tried again with the next request",
        headers=RETRY,
    )
