"""Memory for searching the tiers layout, taken once and used by one search after the other."""

from __future__ import annotations

import numpy as np

from retrieval.index.tiered_postings import GROUP_DOCUMENTS, TieredPostings
from retrieval.index.window_postings import WINDOW_DOCUMENTS
from retrieval.search.tiered_scatter import BINS

MOST_TERMS = 255
"""Query terms that 8-bit slots can tell apart; longer queries are searched exhaustively."""
BUFFER = 4096
"""Candidates gathered before they are scored, at least."""


class TieredScratch:
    """Memory that one thread needs for searching; no search allocates any.

    `sums`, `scores` and `slots` have to be all zeros, and are again after every search.
    """

    def __init__(self) -> None:
        groups = WINDOW_DOCUMENTS // GROUP_DOCUMENTS
        self.sums = np.zeros(WINDOW_DOCUMENTS, np.uint16)
        self.group_largest = np.zeros(groups, np.uint16)
        self.bounds = np.zeros(groups, np.uint16)
        self.found = np.zeros(groups + 1, np.int64)
        self.slots = np.zeros(0, np.uint8)
        self.scores = np.zeros(WINDOW_DOCUMENTS, np.float32)
        self.terms = np.zeros((5, MOST_TERMS + 1), np.int64)
        self.weights = np.zeros(MOST_TERMS + 1, np.float32)
        self.fixed = np.zeros(MOST_TERMS + 1, np.uint32)
        self.floats = np.zeros(MOST_TERMS + 1, np.float32)
        self.histogram = np.zeros(BINS + 1, np.int64)
        self.hits = np.zeros(MOST_TERMS + 2, np.int64)
        self.buffer = np.zeros(BUFFER, np.int64)
        self.buffer_sums = np.zeros(BUFFER, np.uint16)
        self.other_keys = np.zeros(0, np.uint64)

    def fit(self, postings: TieredPostings, room: int, candidates: int) -> None:
        """Grow to what a segment, keys of results and the candidates for them need."""
        if len(self.other_keys) < room:
            self.other_keys = np.zeros(room, np.uint64)
        if len(self.buffer) < 4 * candidates:
            self.buffer = np.zeros(4 * candidates, np.int64)
            self.buffer_sums = np.zeros(4 * candidates, np.uint16)
        if len(self.slots) < len(postings.units):
            self.slots = np.zeros(len(postings.units), np.uint8)
