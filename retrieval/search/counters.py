"""What a search did, counted for whoever wants to know why it took as long as it did."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class SearchCounters:
    """What a search did, summed over its queries.

    Attributes:
        queries: how many.
        postings: postings added up.
        scored: documents scored from their rows.
        row_entries: entries of those rows.
        groups: groups of 32 documents that were looked at.
        groups_skipped: those of which no document had to be scored.
        exhaustive: queries (times segments) that were added up completely.
        bytes: bytes of the index that were read, about.
    """

    queries: int = 0
    postings: int = 0
    scored: int = 0
    row_entries: int = 0
    groups: int = 0
    groups_skipped: int = 0
    exhaustive: int = 0
    bytes: int = 0

    def add(self, counts: NDArray[np.int64]) -> None:
        for field, count in zip(fields(self), counts.tolist(), strict=True):
            setattr(self, field.name, getattr(self, field.name) + count)


NUM_COUNTERS = len(fields(SearchCounters))
QUERIES, POSTINGS, SCORED, ROW_ENTRIES, GROUPS, SKIPPED, EXHAUSTIVE, BYTES = range(NUM_COUNTERS)
