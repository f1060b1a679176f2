"""Topics of queries, for batches of one topic: spherical k-means over a dense teacher's query vectors.

In a batch of one topic the passages of other queries are hard to tell apart, and so worth more as negatives
(topic-aware sampling, Hofstätter et al. 2021).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import UsageError

MAX_ROUNDS = 30
BLOCK_ROWS = 1 << 13


def find_topics(vectors: NDArray[Any], num_topics: int, seed: int = 0) -> NDArray[np.int32]:
    """int32 ``[rows]``: the topic of each vector, in ``[0, num_topics)``; every topic has at least one.

    Rounds of assigning each vector to the centre of greatest cosine and moving centres to the mean direction of
    their vectors, until nothing changes or `MAX_ROUNDS` are over. A centre that lost all vectors takes the vector
    that lies farthest from its own centre.

    Args:
        vectors: ``[rows, dim]``, of any length; the zero vector belongs anywhere.
        num_topics: between 1 and the number of rows.
        seed: of the first centres.

    Raises:
        UsageError: more topics than vectors, or none.
    """
    if not 1 <= num_topics <= len(vectors):
        raise UsageError(
            f"{num_topics} topics were asked for, but must be between 1 and the {len(vectors)} queries"
        )
    points = _unit(vectors.astype(np.float32))
    centres = _first_centres(points, num_topics, seed)
    topics = np.full(len(points), -1, np.int32)
    for _ in range(MAX_ROUNDS):
        before = topics
        topics, closeness = _nearest(points, centres)
        _fill_empty(topics, closeness, num_topics)
        if np.array_equal(before, topics):
            break
        sums = np.zeros((num_topics, points.shape[1]), np.float64)
        np.add.at(sums, topics, points)
        centres = _unit(sums).astype(np.float32)
    return topics


def _first_centres(points: NDArray[np.float32], num_topics: int, seed: int) -> NDArray[np.float32]:
    """Points far from each other: each is drawn by its distance to the nearest before it (k-means++)."""
    generator = np.random.default_rng(seed)
    chosen = [int(generator.integers(len(points)))]
    farness = np.full(len(points), np.inf)
    while len(chosen) < num_topics:
        farness = np.minimum(farness, np.maximum(1.0 - points @ points[chosen[-1]], 0.0))
        total = farness.sum()
        chosen.append(int(generator.choice(len(points), p=farness / total if total > 0 else None)))
    return points[chosen]


def _nearest(
    points: NDArray[np.float32], centres: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    topics = np.empty(len(points), np.int32)
    closeness = np.empty(len(points), np.float32)
    for start in range(0, len(points), BLOCK_ROWS):
        cosines = points[start : start + BLOCK_ROWS] @ centres.T
        best = cosines.argmax(axis=1)
        topics[start : start + BLOCK_ROWS] = best
        closeness[start : start + BLOCK_ROWS] = cosines[np.arange(len(best)), best]
    return topics, closeness


def _fill_empty(topics: NDArray[np.int32], closeness: NDArray[np.float32], num_topics: int) -> None:
    sizes = np.bincount(topics, minlength=num_topics)
    farthest = iter(np.argsort(closeness, kind="stable").tolist())
    for empty in np.flatnonzero(sizes == 0).tolist():
        # There are no more topics than vectors, so one that can be spared is always found.
        taken = next(place for place in farthest if sizes[topics[place]] > 1)
        sizes[topics[taken]] -= 1
        topics[taken] = empty
        sizes[empty] = 1


def _unit(rows: NDArray[Any]) -> NDArray[Any]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
