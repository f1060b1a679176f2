"""Ranking all passages for all queries by dense vectors: exact, by products of blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.training.teachers.vectors import DenseTeacher

BLOCK_SCORES = 1 << 24
"""Scores that are held at a time: 64 MB in float32."""

PASSAGES_AT_ONCE = 1 << 16
"""Passages whose vectors are float32 at a time."""


def rank_dense(
    teacher: DenseTeacher, depth: int, block_scores: int = BLOCK_SCORES
) -> Iterator[NDArray[np.int32]]:
    """Yield for each query in turn the numbers of its best passages, int32 ``[min(depth, passages)]``.

    Highest score first; of equal scores the lower number.
    """
    num_passages = len(teacher.passages)
    rows = max(1, min(block_scores // max(num_passages, 1), len(teacher.queries)))
    scores = np.empty((rows, num_passages), np.float32)
    for start in range(0, len(teacher.queries), rows):
        asked = teacher.queries[start : start + rows].astype(np.float32)
        for first in range(0, num_passages, PASSAGES_AT_ONCE):
            part = teacher.passages[first : first + PASSAGES_AT_ONCE].astype(np.float32)
            np.matmul(asked, part.T, out=scores[: len(asked), first : first + len(part)])
        for row in scores[: len(asked)]:
            yield best(row, depth)


def best(scores: NDArray[Any], depth: int) -> NDArray[np.int32]:
    """The places of the `depth` highest scores, highest first; of equal ones the lower place first."""
    if depth < len(scores):
        # All that reach the last score that counts, so that ties are broken by place and not by the partition.
        least = np.partition(scores, len(scores) - depth)[len(scores) - depth]
        candidates = np.flatnonzero(scores >= least)
    else:
        candidates = np.arange(len(scores))
    order = np.argsort(-scores[candidates], kind="stable")[:depth]
    return candidates[order].astype(np.int32)
