"""Several teachers as one: scores normalised per query, averaged, and brought to a wanted scale.

A dot product of MiniLM lies in [-1, 1], BM25's in [0, 60] and a cross-encoder's logits in [-12, 12], so scores are
brought to [0, 1] over the candidates of each query before they are averaged (heterogeneous ensemble distillation,
Geng et al. 2024; SPLADE-v3, Lassance et al. 2024). What is averaged no longer has a scale that margins could be
learned from; SPLADE-v3 gives it the one of a single teacher by an affine map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.training.teachers.vectors import TeacherVectors
from runtime.errors import UsageError

Lists = Sequence[NDArray[np.float32]]
"""Of every query the scores of its candidates: float32, of any lengths."""


def min_max(scores: NDArray[Any]) -> NDArray[np.float32]:
    """Each row (last axis) mapped to [0, 1] by its own least and greatest; rows of equal scores become 0."""
    if scores.shape[-1] == 0:
        return scores.astype(np.float32)
    wide = scores.astype(np.float64)
    least = wide.min(axis=-1, keepdims=True)
    span = wide.max(axis=-1, keepdims=True) - least
    found: NDArray[np.float32] = np.divide(
        wide - least, span, out=np.zeros_like(wide), where=span > 0
    ).astype(np.float32)
    return found


def ensemble(teachers: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """The average over teachers of their scores ``[queries, passages]``, each min-max normalised per query."""
    _require_any(teachers)
    total = np.zeros(teachers[0].shape, np.float64)
    for scores in teachers:
        total += min_max(scores)
    found: NDArray[np.float32] = (total / len(teachers)).astype(np.float32)
    return found


def ensemble_scores(
    teachers: Sequence[TeacherVectors], queries: NDArray[Any], passages: NDArray[Any]
) -> NDArray[np.float32]:
    """float32 ``[q, p]`` in [0, 1]: what the teachers together think of every passage of a batch for every query."""
    return ensemble([teacher.scores(queries, passages) for teacher in teachers])


def ensemble_lists(teachers: Sequence[Lists]) -> list[NDArray[np.float32]]:
    """`ensemble` for lists of candidates, which may have a different length for every query.

    Raises:
        UsageError: no teacher, or teachers that scored different candidates.
    """
    _require_any(teachers)
    combined = []
    for number, lists in enumerate(zip(*teachers, strict=True)):
        if len({len(scores) for scores in lists}) > 1:
            raise UsageError(f"the teachers scored different numbers of candidates for query {number}")
        combined.append(ensemble(lists))
    return combined


def _require_any(teachers: Sequence[Any]) -> None:
    if not teachers:
        raise UsageError("there is no teacher to combine; run lexpert train teach on the training set first")


def rescale_like(scores: Lists, reference: Lists) -> list[NDArray[np.float32]]:
    """`scores` under the one affine map that gives all of them together the mean and spread of `reference`.

    Raises:
        UsageError: all of `scores` are equal, so that no map gives them a spread.
    """
    given = np.concatenate([np.zeros(0), *scores]).astype(np.float64)
    wanted = np.concatenate([np.zeros(0), *reference]).astype(np.float64)
    if not len(given) or not len(wanted):
        return [np.asarray(row, np.float32) for row in scores]
    spread = given.std()
    if spread == 0:
        raise UsageError("the combined scores are all equal, so they cannot be rescaled; use other teachers")
    factor = wanted.std() / spread
    offset = wanted.mean() - factor * given.mean()
    return [(factor * row.astype(np.float64) + offset).astype(np.float32) for row in scores]
