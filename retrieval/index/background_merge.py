"""Merges of neighbouring segments, going on in a thread while their writer goes on too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np

from retrieval.index.manifest import SegmentEntry
from retrieval.index.merge import is_provisional
from retrieval.index.merge_policy import MergePolicy, SegmentSize, plan_merges
from retrieval.index.segment import Segment
from retrieval.index.writer_segment import WriterSegment
from runtime.progress import Advance


class _AbandonedError(Exception):
    """Ends the thread of a merge that nobody wants any more."""


Merge = Callable[[str, Sequence[Segment], Advance | None], SegmentEntry]
"""Merges opened segments under a name."""


class BackgroundMerge:
    """The documents of `sources` that are live now, on their way into one segment.

    The sources stay what they are, and may lose documents meanwhile: `take` deletes those from the result. What
    is written belongs to no commit until the writer makes one; killed before, it is a leftover like any other.

    Args:
        index: folder of the index.
        name: of the segment to write; no other may bear it.
        sources: neighbours, in document order.
        open_segment: opens one of them.
        merge: does it.
        advance: called, in the thread, with the number of documents done since the last call.
    """

    def __init__(
        self,
        index: Path,
        name: str,
        sources: Sequence[WriterSegment],
        open_segment: Callable[[WriterSegment], Segment],
        merge: Merge,
        advance: Advance,
    ) -> None:
        self.name = name
        self.sources = list(sources)
        self._index = index
        self._deleted = [source.deleted.copy() for source in sources]
        self._advance = advance
        self._is_abandoned = Event()
        # Opened here and now: the files of a source may go, once a commit no longer names it.
        opened = [open_segment(source) for source in sources]
        for segment, deleted in zip(opened, self._deleted, strict=True):
            segment.deleted = deleted  # the last commit's, and those since
        thread = ThreadPoolExecutor(1, thread_name_prefix="merge")
        self._result = thread.submit(merge, name, opened, self._advance_or_end)
        thread.shutdown(wait=False)

    @property
    def is_done(self) -> bool:
        return self._result.done()

    def take(self) -> WriterSegment:
        """The merged segment, without what was deleted from its sources meanwhile; waits for it.

        Raises:
            LexpertError: no space was left; or whatever else ended the merge.
        """
        merged = WriterSegment(self._index, self._result.result())
        for source, before in zip(self.sources, self._deleted, strict=True):
            # By id, and not by row: so it holds whatever order of rows a layout may choose.
            merged.delete(source.ids.take(np.flatnonzero(source.deleted & ~before)))
        return merged

    def abandon(self) -> None:
        """Stop as soon as may be, and wait until nothing is written any more."""
        self._is_abandoned.set()
        self._result.exception()

    def _advance_or_end(self, documents: int) -> None:
        if self._is_abandoned.is_set():
            raise _AbandonedError
        self._advance(documents)


class Merging:
    """The merges of one writer: one at a time, as the policy asks for them.

    Not for several threads: the writer's own calls `step`, whenever its segments have changed.

    Args:
        index: folder of the index.
        policy: when to merge; None for never.
        next_name: gives the next segment its name.
        open_segment: opens a segment.
        merge: merges some.
    """

    def __init__(
        self,
        index: Path,
        policy: MergePolicy | None,
        next_name: Callable[[], str],
        open_segment: Callable[[WriterSegment], Segment],
        merge: Merge,
    ) -> None:
        self.policy = policy
        self.advance: Advance | None = None
        self.has_result = False
        """Whether the segments hold a merge that no commit has yet; for who commits to reset."""
        self._index = index
        self._next_name = next_name
        self._open_segment = open_segment
        self._merge = merge
        self._running: BackgroundMerge | None = None
        self._failure: Exception | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a merge goes on, failed, or waits for a commit."""
        return self._running is not None or self._failure is not None or self.has_result

    @property
    def unfinished(self) -> set[str]:
        """Names of segments that are being written."""
        return {self._running.name} if self._running else set()

    def step(self, segments: list[WriterSegment]) -> None:
        """Put the result of a finished merge into `segments`, and start the next; does not wait.

        A merge that failed is not tried again: `finish` says why.
        """
        if self._running is not None and self._running.is_done:
            self._take(segments)
        if self._running is None and self._failure is None:
            self._start(segments)

    def wait(self, segments: list[WriterSegment]) -> None:
        """Put the result of the merge that goes on into `segments`, once it is done."""
        if self._running is not None:
            self._take(segments)

    def finish(self, segments: list[WriterSegment]) -> None:
        """Go on until there is nothing to merge.

        Raises:
            LexpertError: no space was left; or whatever else ended a merge. `segments` are as good as before.
        """
        self.step(segments)
        while self._running is not None:
            self.wait(segments)
            self.step(segments)
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def abandon(self) -> None:
        """Give up the merge that goes on."""
        if self._running is not None:
            self._running.abandon()
            self._running = None

    def _start(self, segments: list[WriterSegment]) -> None:
        # Counts cannot be merged before they are weighed, at the first commit.
        if self.policy is None or any(segment.is_counted for segment in segments):
            return
        sizes = [
            SegmentSize(
                len(segment.deleted),
                len(segment.deleted) - segment.live,
                segment.entry.postings,
                is_provisional(segment.entry, segment.live),
            )
            for segment in segments
        ]
        for group in plan_merges(sizes, self.policy):
            sources = [segments[place] for place in group if segments[place].live]
            if sources:  # what has no live document is dropped by the next commit
                name = self._next_name()
                self._running = BackgroundMerge(
                    self._index, name, sources, self._open_segment, self._merge, self._advanced
                )
                return

    def _take(self, segments: list[WriterSegment]) -> None:
        assert self._running is not None
        finished, self._running = self._running, None
        try:
            merged = finished.take()
        except Exception as error:  # whatever it was, the sources are there, and commits go on without it
            self._failure = error
            return
        # A commit may have dropped those of the sources whose last document was deleted.
        left = [place for place, segment in enumerate(segments) if segment in finished.sources]
        if left:
            segments[left[0] : left[-1] + 1] = [merged]
            self.has_result = True

    def _advanced(self, documents: int) -> None:
        if self.advance is not None:
            self.advance(documents)
