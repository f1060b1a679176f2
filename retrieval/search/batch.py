"""Searches a batch of queries over the segments of an index, on several threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from retrieval.index.segment import Segment
from retrieval.index.tiered_postings import TieredPostings
from retrieval.search.counters import SearchCounters
from retrieval.search.exhaustive import search_windows
from retrieval.search.tiered import APPROXIMATE_MODE, EXACT_MODE, EXHAUSTIVE_MODE, search_tiers
from retrieval.search.tiered_scratch import TieredScratch
from retrieval.search.top_k import MOST_ROWS, room_for, sort_best_first
from retrieval.search.traversal import Traversal
from runtime.activations import SparseActivations
from runtime.errors import UsageError

TOP_ENTRIES = 1 << 22
"""Results that are kept at a time; larger batches are searched in pieces."""

DOCUMENTS_PER_RESULT = 1500
"""Exact searches of segments with fewer documents for every result are exhaustive. Measured: at 1,000 a proof takes
as long (k = 100) or twice as long (k = 1,000), at 3,000 two thirds, at 100,000 less than a quarter of the time."""

MODES = {"exhaustive": EXHAUSTIVE_MODE, "exact": EXACT_MODE, "approximate": APPROXIMATE_MODE}

NO_LIMIT = np.zeros(0, np.bool_)
NO_ROWS = np.zeros(0, np.int64)
FEW = 0.25
"""Up to this share of the documents it is faster to go through those that may be found than through all."""

Found = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Part:
    """A segment of an index and what may be found in it.

    Attributes:
        first_row: number of its first row in the index.
        allowed: bool ``[documents]``; empty means all.
        allowed_rows: int64, the same as ascending numbers where they are few; else empty.
        share: of its documents that may be found.
    """

    segment: Segment
    first_row: int
    allowed: NDArray[np.bool_] = field(default_factory=lambda: NO_LIMIT)
    allowed_rows: NDArray[np.int64] = field(default_factory=lambda: NO_ROWS)
    share: float = 1.0

    @classmethod
    def limited(cls, segment: Segment, first_row: int, allowed: NDArray[np.bool_]) -> Part:
        """A segment of which only some documents may be found."""
        share = np.count_nonzero(allowed) / max(1, len(allowed))
        rows = np.flatnonzero(allowed) if share <= FEW else NO_ROWS
        return cls(segment, first_row, allowed, rows, share)


class Scratch(threading.local):
    """Each thread's own memory for searching."""

    def __init__(self) -> None:
        self.tiered = TieredScratch()


def search_batch(
    parts: Sequence[Part],
    vectors: SparseActivations,
    k: int,
    traversal: Traversal,
    threads: int,
    pool: Executor,
    scratch: Scratch,
    *,
    split_parts: bool,
    counters: SearchCounters | None = None,
) -> list[Found]:
    """The best `k` of every query: scores and rows, highest score first, equal scores by lower row.

    Args:
        vectors: units ascending in a row, weights > 0.
        threads: at most so many are busy at once, with queries of their own; or, where `split_parts`, each
            with some of the parts for the same queries.
    """
    parts = [part for part in parts if part.share]
    rows = sum(part.segment.num_documents for part in parts)
    k = min(k, rows)
    if parts and parts[-1].first_row + parts[-1].segment.num_documents > MOST_ROWS:
        raise UsageError(
            f"a search tells {MOST_ROWS:,} rows apart, but this index has more; split it into several"
        )
    if not k:
        return [(np.zeros(0, np.float32), np.zeros(0, np.int64)) for _ in range(len(vectors))]
    if split_parts and threads > 1 and len(parts) > 1:
        shares = [parts[first::threads] for first in range(min(threads, len(parts)))]
        found = pool.map(
            lambda share: search_batch(
                share, vectors, k, traversal, 1, pool, scratch, split_parts=False, counters=counters
            ),
            shares,
        )
        return [_best_of(several, k) for several in zip(*found, strict=True)]
    results: list[Found] = []
    at_once = max(1, TOP_ENTRIES // k)
    for start in range(0, len(vectors), at_once):
        piece = vectors if at_once >= len(vectors) else vectors[start : start + at_once]
        results += _search_piece(parts, piece, k, traversal, threads, pool, scratch, counters)
    return results


def _search_piece(
    parts: Sequence[Part],
    vectors: SparseActivations,
    k: int,
    traversal: Traversal,
    threads: int,
    pool: Executor,
    scratch: Scratch,
    counters: SearchCounters | None,
) -> list[Found]:
    queries = vectors.indptr, vectors.units, vectors.weights
    keys = np.empty((len(vectors), room_for(k)), np.uint64)
    sizes = np.zeros(len(vectors), np.int64)
    scores = np.empty((len(vectors), k), np.float32)
    rows = np.empty((len(vectors), k), np.int64)
    step = max(1, min(threads, len(vectors)))

    def search_share(first: int) -> None:
        own = scratch.tiered
        for part in parts:
            postings = part.segment.postings
            share, top = (first, step), (keys, sizes, k)
            if isinstance(postings, TieredPostings):
                search_tiers(
                    postings,
                    part.first_row,
                    part.allowed,
                    part.allowed_rows,
                    queries,
                    share,
                    top,
                    own,
                    mode=MODES[traversal.mode],
                    effort=min(1.0, traversal.effort / part.share),
                    # Among all documents, to have as many among those that may be found.
                    candidates=round(traversal.num_candidates(k) / max(part.share, FEW)),
                    documents_per_result=DOCUMENTS_PER_RESULT,
                    counters=counters,
                )
            else:
                search_windows(postings, part.first_row, part.allowed, queries, share, top, own.scores)
        sort_best_first(keys, sizes, k, (first, step), scores, rows)

    if step == 1:
        search_share(0)
    else:
        list(pool.map(search_share, range(step)))
    return [(scores[query, :size], rows[query, :size]) for query, size in enumerate(sizes.tolist())]


def _best_of(several: Sequence[Found], k: int) -> Found:
    scores = np.concatenate([scores for scores, _ in several])
    rows = np.concatenate([rows for _, rows in several])
    order = np.lexsort((rows, -scores))[:k]
    return scores[order], rows[order]
