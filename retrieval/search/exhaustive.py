"""Exact search, window by window: every posting of every query unit is added up, then the window is scanned.

As in SINDI (windowed term-at-a-time accumulation): the scores of a window of 65,536 documents are 256 KB and
stay in a core's second-level cache while the postings stream by.

A document's score is the float32 sum, in ascending order of units, of float32 products query weight × impact.
The order is part of the definition: it makes scores reproducible bit by bit, whatever the traversal.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from retrieval.index.segment import Segment
from retrieval.index.window_postings import WINDOW_DOCUMENTS


@numba.njit(nogil=True, cache=True, inline="always")
def _sift_down(scores: NDArray[np.float32], rows: NDArray[np.int64], size: int) -> None:
    """Restore the heap below its root, where the worst result is: lowest score, then highest row."""
    parent = 0
    while True:
        worst = parent
        for child in (2 * parent + 1, 2 * parent + 2):
            if child < size and (
                scores[child] < scores[worst]
                or (scores[child] == scores[worst] and rows[child] > rows[worst])
            ):
                worst = child
        if worst == parent:
            return
        scores[parent], scores[worst] = scores[worst], scores[parent]
        rows[parent], rows[worst] = rows[worst], rows[parent]
        parent = worst


@numba.njit(nogil=True, cache=True, inline="always")
def _sift_up(scores: NDArray[np.float32], rows: NDArray[np.int64], child: int) -> None:
    while child > 0:
        parent = (child - 1) // 2
        if scores[child] > scores[parent] or (scores[child] == scores[parent] and rows[child] < rows[parent]):
            return
        scores[parent], scores[child] = scores[child], scores[parent]
        rows[parent], rows[child] = rows[child], rows[parent]
        child = parent


@numba.njit(nogil=True, cache=True)
def search_windows(
    first_window: int,
    last_window: int,
    first_row: int,
    window_documents: NDArray[np.int64],
    window_terms: NDArray[np.int64],
    window_postings: NDArray[np.int64],
    term_units: NDArray[np.uint32],
    term_starts: NDArray[np.uint32],
    posting_rows: NDArray[np.uint16],
    posting_impacts: NDArray[Any],
    window_steps: NDArray[np.float32],
    allowed: NDArray[np.bool_],
    query_units: NDArray[np.int32],
    query_weights: NDArray[np.float32],
    accumulators: NDArray[np.float32],
    top_scores: NDArray[np.float32],
    top_rows: NDArray[np.int64],
    size: int,
) -> int:
    """Search some windows of a segment, carrying a heap of the best so far; returns its new size.

    `allowed` says which documents of the segment may be results; empty means all. `accumulators` has to be all
    zeros, and is again afterwards. Rows are counted from `first_row` and only ever grow from call to call, so a
    document never displaces an equal one that came before.
    """
    k = len(top_scores)
    for window in range(first_window, last_window):
        terms_start, terms_end = window_terms[window], window_terms[window + 1]
        base, postings_end = window_postings[window], window_postings[window + 1]
        start = window_documents[window]
        documents = window_documents[window + 1] - start
        term = terms_start
        touched = False
        for query_term in range(len(query_units)):
            unit = query_units[query_term]
            weight = query_weights[query_term] * window_steps[window]  # exact: a power of two
            high = terms_end
            while term < high:  # query units ascend, so the search goes on where the last one ended
                middle = (term + high) // 2
                if term_units[middle] < unit:
                    term = middle + 1
                else:
                    high = middle
            if term == terms_end:
                break
            if term_units[term] != unit:
                continue
            touched = True
            end = base + term_starts[term + 1] if term + 1 < terms_end else postings_end
            for posting in range(base + term_starts[term], end):
                accumulators[posting_rows[posting]] += weight * np.float32(posting_impacts[posting])
        if not touched:
            continue
        threshold = top_scores[0] if size == k else np.float32(0.0)
        for document in range(documents):
            score = accumulators[document]
            accumulators[document] = 0.0
            if score > threshold and (len(allowed) == 0 or allowed[start + document]):
                row = first_row + start + document
                if size < k:
                    top_scores[size], top_rows[size] = score, row
                    _sift_up(top_scores, top_rows, size)
                    size += 1
                else:
                    top_scores[0], top_rows[0] = score, row
                    _sift_down(top_scores, top_rows, k)
                if size == k:
                    threshold = top_scores[0]
    return size


class WindowRange:
    """Some consecutive windows of an index: what one thread searches for one query."""

    def __init__(self, segment: Segment, first_row: int, first: int, last: int) -> None:
        self.segment = segment
        self.first_row = first_row
        self.first = first
        self.last = last


def split_windows(segments: list[Segment], first_rows: list[int], parts: int) -> list[list[WindowRange]]:
    """Divide the windows of an index into `parts` runs of about equally many documents, in row order."""
    windows = [
        WindowRange(segment, first_row, window, window + 1)
        for segment, first_row in zip(segments, first_rows, strict=True)
        for window in range(segment.num_windows)
    ]
    total = sum(segment.num_documents for segment in segments)
    runs: list[list[WindowRange]] = [[] for _ in range(parts)]
    done = 0
    for window in windows:
        run = runs[min(parts - 1, done * parts // max(total, 1))]
        if run and run[-1].segment is window.segment:
            run[-1].last = window.last
        else:
            run.append(window)
        done += int(np.diff(window.segment.window_documents[window.first : window.last + 1])[0])
    return [run for run in runs if run]


def search_run(
    run: list[WindowRange],
    allowed: dict[int, NDArray[np.bool_]],
    units: NDArray[np.int32],
    weights: NDArray[np.float32],
    k: int,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The best `k` of a run of windows, unordered: scores and rows.

    `allowed` maps the place of a segment's first row to the documents that may be results.
    """
    documents = sum(part.segment.num_documents for part in run)
    accumulators = np.zeros(min(WINDOW_DOCUMENTS, documents), np.float32)
    scores = np.empty(min(k, documents), np.float32)
    rows = np.empty(len(scores), np.int64)
    size = 0
    for part in run:
        postings = part.segment.postings
        size = search_windows(
            part.first,
            part.last,
            part.first_row,
            postings.window_documents,
            postings.window_terms,
            postings.window_postings,
            postings.term_units,
            postings.term_starts,
            postings.posting_rows,
            postings.posting_impacts,
            postings.window_steps,
            allowed.get(part.first_row, _ALL),
            units,
            weights,
            accumulators,
            scores,
            rows,
            size,
        )
    return scores[:size], rows[:size]


_ALL = np.zeros(0, np.bool_)


def best_first(
    parts: list[tuple[NDArray[np.float32], NDArray[np.int64]]], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Merge unordered parts into the best `k`: highest score first, equal scores by lower row."""
    scores = np.concatenate([scores for scores, _ in parts]) if parts else np.zeros(0, np.float32)
    rows = np.concatenate([rows for _, rows in parts]) if parts else np.zeros(0, np.int64)
    order = np.lexsort((rows, -scores))[:k]
    return scores[order], rows[order]
