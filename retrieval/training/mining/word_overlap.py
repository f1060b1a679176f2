"""How alike two passages are in their words: copies of the positive are no negatives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.training.teachers.vectors import SparseTeacher
from retrieval.training.training_set import same_text
from runtime.activations import SparseActivations
from runtime.progress import Advance

WORD = re.compile(r"\w+")


class WordOverlap:
    """Distinct words of all passages, as sparse rows of ones."""

    def __init__(self, passages: Sequence[str], advance: Advance = lambda _: None) -> None:
        numbers: dict[str, int] = {}
        rows = []
        for passage in passages:
            words = set(WORD.findall(same_text(passage)))
            # Sorted, since a set's order differs between processes.
            rows.append(np.sort([numbers.setdefault(word, len(numbers)) for word in sorted(words)]))
            advance(1)
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=indptr[1:])
        units = np.concatenate([np.zeros(0, np.int32), *rows]).astype(np.int32)
        words_of = SparseActivations(indptr, units, np.ones(len(units), np.float32), max(len(numbers), 1))
        self._sizes = np.diff(indptr)
        self._common = SparseTeacher("words", "", queries=words_of, passages=words_of)

    def jaccard(self, left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
        """float64 ``[n]``: of the words of two passages, the share that both have; 1 where neither has any."""
        common = self._common.pair_scores(left, right).astype(np.float64)
        either = self._sizes[left] + self._sizes[right] - common
        found: NDArray[np.float64] = np.divide(common, either, out=np.ones_like(common), where=either > 0)
        return found
