"""Asking teachers: vectors of bi-encoders for the whole set, and combined scores of the listed candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrieval.training.combine import ensemble_lists, rescale_like
from retrieval.training.teachers.vectors import DenseTeacher, SparseTeacher
from retrieval.training.topics import find_topics
from retrieval.training.training_set import TrainingSet
from runtime.errors import UsageError
from runtime.progress import progress

if TYPE_CHECKING:
    from retrieval.training.teachers.cross_encoder import CrossEncoderScores

    Teacher = DenseTeacher | SparseTeacher | CrossEncoderScores

PAIRS_AT_ONCE = 1 << 13
"""Pairs whose vectors a bi-encoder teacher gathers at a time."""


@dataclass(frozen=True)
class Opinion:
    """What a teacher thinks of the positives.

    Attributes:
        name: the teacher's; "combined" for all together.
        pairs: query-passage pairs scored.
        first: share of the queries with negatives whose positive scores above all of them.
        margin: mean over those queries of the positive's score minus the best negative's.
    """

    name: str
    pairs: int
    first: float
    margin: float


def teach(
    training_set: TrainingSet,
    teachers: Sequence[Teacher],
    *,
    rescale: bool = False,
    topics: int | None = None,
    seed: int = 0,
) -> tuple[TrainingSet, list[Opinion]]:
    """The set with what the teachers say, in the place of what it had from others.

    Bi-encoders join it with their vectors. Where there are negatives, every teacher scores the listed candidates;
    the scores are min-max normalised for each query and averaged.

    Args:
        rescale: give the combined scores the mean and spread of the first teacher's, for losses on margins.
        topics: also sort queries into so many topics, by the first dense teacher's vectors.
        seed: of the topics.

    Raises:
        UsageError: no teacher; a cross-encoder but no negatives; topics without a dense teacher.
    """
    if not teachers:
        raise UsageError("there is no teacher; name one or more")
    vectors = [teacher for teacher in teachers if isinstance(teacher, DenseTeacher | SparseTeacher)]
    has_negatives = any(len(row) for row in training_set.negatives)
    if len(vectors) < len(teachers) and not has_negatives:
        raise UsageError(
            "a cross-encoder scores listed candidates only, but the training set has no negatives; mine some first"
        )
    groups = training_set.groups
    if topics is not None:
        dense = next((teacher for teacher in vectors if isinstance(teacher, DenseTeacher)), None)
        if dense is None:
            raise UsageError(
                "topics are found by the vectors of a dense teacher, but none is among the teachers"
            )
        groups = find_topics(dense.queries, topics, seed)
    scores = None
    opinions = []
    if has_negatives:
        lists = []
        for teacher in teachers:
            lists.append(score_candidates(training_set, teacher))
            opinions.append(_opinion(teacher.name, lists[-1]))
        scores = ensemble_lists(lists)
        if rescale:
            scores = rescale_like(scores, lists[0])
        if len(teachers) > 1:
            opinions.append(_opinion("combined", scores))
    taught = replace(training_set, teachers=[*vectors], scores=scores, groups=groups)
    return taught, opinions


def score_candidates(training_set: TrainingSet, teacher: Teacher) -> list[NDArray[np.float32]]:
    """A teacher's scores of the positive and the negatives of every query: float32 ``[1 + negatives]`` each."""
    sizes = np.array([1 + len(negatives) for negatives in training_set.negatives], np.int64)
    queries = np.repeat(np.arange(len(training_set)), sizes)
    parts: list[Any] = [np.zeros(0, np.int32)]
    for positive, negatives in zip(training_set.positives, training_set.negatives, strict=True):
        parts += [[positive], negatives]
    passages = np.concatenate(parts).astype(np.int32)
    scores = np.empty(len(queries), np.float32)
    with progress(f"{teacher.name}: scores", len(queries), "pairs") as advance:
        if isinstance(teacher, DenseTeacher | SparseTeacher):
            for start in range(0, len(queries), PAIRS_AT_ONCE):
                part = slice(start, start + PAIRS_AT_ONCE)
                scores[part] = teacher.pair_scores(queries[part], passages[part])
                advance(len(scores[part]))
        else:
            scores[:] = teacher.pair_scores(queries, passages, advance)
    return np.split(scores, np.cumsum(sizes)[:-1]) if len(sizes) else []


def _opinion(name: str, lists: Sequence[NDArray[np.float32]]) -> Opinion:
    margins = np.array([row[0] - row[1:].max() for row in lists if len(row) > 1], np.float64)
    pairs = sum(map(len, lists))
    if not len(margins):
        return Opinion(name, pairs, 0.0, 0.0)
    return Opinion(name, pairs, float((margins > 0).mean()), float(margins.mean()))
