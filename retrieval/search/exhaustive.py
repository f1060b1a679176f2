"""Search of the windows layout: every posting of every query unit is added up, then the window is scanned.

As in SINDI (windowed term-at-a-time accumulation): the scores of a window of 65,536 documents are 256 KB and
stay in a core's second-level cache while the postings stream by.

A document's score is the float32 sum, in ascending order of units, of float32 products query weight × impact.
The order is part of the definition: it makes scores reproducible bit by bit, whatever the traversal.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from retrieval.index.window_postings import WindowPostings
from retrieval.search import top_k
from retrieval.search.top_k import needed_score, offer
from runtime.kernels.kernel_sources import digest_of_sources


def search_windows(
    postings: WindowPostings,
    first_row: int,
    allowed: NDArray[np.bool_],
    queries: tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]],
    share: tuple[int, int],
    top: tuple[NDArray[np.uint64], NDArray[np.int64], int],
    accumulators: NDArray[np.float32],
) -> None:
    """Search one segment for a share of some queries, carrying the best so far.

    Args:
        first_row: number of the segment's first row in the index.
        allowed: bool ``[documents]``, which may be results; empty means all.
        queries: ``indptr``, ``units`` (ascending in a row) and ``weights`` (> 0).
        share: the queries from the first of these two on, each so many-th as the second.
        top: keys ``[queries, room]`` (see `top_k`), int64 ``[queries]`` how many there are, and `k`.
        accumulators: float32 ``[WINDOW_DOCUMENTS]``, all zeros, and again afterwards.
    """
    _search_windows(
        *queries,
        *share,
        first_row,
        postings.window_documents,
        postings.window_terms,
        postings.window_postings,
        postings.term_units,
        postings.term_starts,
        postings.posting_rows,
        postings.posting_impacts,
        allowed,
        accumulators,
        top[0],
        top[1],
        top[2],
    )


@numba.njit(nogil=True, cache=True)
def _search_windows(
    indptr: NDArray[np.int64],
    query_units: NDArray[np.int32],
    query_weights: NDArray[np.float32],
    first_query: int,
    query_step: int,
    first_row: int,
    window_documents: NDArray[np.int64],
    window_terms: NDArray[np.int64],
    window_postings: NDArray[np.int64],
    term_units: NDArray[np.uint32],
    term_starts: NDArray[np.uint32],
    posting_rows: NDArray[np.uint16],
    posting_impacts: NDArray[np.float32],
    allowed: NDArray[np.bool_],
    accumulators: NDArray[np.float32],
    top_keys: NDArray[np.uint64],
    sizes: NDArray[np.int64],
    k: int,
    sources: int = digest_of_sources(top_k),  # noqa: ARG001 (see `runtime.kernels.kernel_sources`)
) -> None:
    for query in range(first_query, len(indptr) - 1, query_step):
        keys, size = top_keys[query], sizes[query]
        for window in range(len(window_documents) - 1):
            terms_end = window_terms[window + 1]
            base, postings_end = window_postings[window], window_postings[window + 1]
            term = window_terms[window]
            touched = False
            for entry in range(indptr[query], indptr[query + 1]):
                unit = query_units[entry]
                weight = query_weights[entry]
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
                    accumulators[posting_rows[posting]] += weight * posting_impacts[posting]
            if not touched:
                continue
            start = window_documents[window]
            threshold = needed_score(keys, size, k)
            for document in range(window_documents[window + 1] - start):
                score = accumulators[document]
                accumulators[document] = 0
                if score > 0 and score >= threshold and (len(allowed) == 0 or allowed[start + document]):
                    size = offer(keys, size, k, score, first_row + start + document)
                    threshold = needed_score(keys, size, k)
        sizes[query] = size
