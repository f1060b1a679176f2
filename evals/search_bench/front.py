"""Which points of recall and rate are worth having, and what an engine reaches at a given recall."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

Point = tuple[float, float]
"""Recall, and queries a second."""


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The points that no other one beats in recall and rate both, by rising recall."""
    front: list[Point] = []
    for recall, rate in sorted(set(points), key=lambda point: (-point[0], -point[1])):
        if not front or rate > front[-1][1]:
            front.append((recall, rate))
    return front[::-1]


def rate_at(points: Sequence[Point], recall: float) -> float | None:
    """The rate that an engine reaches at a recall: between its points, the rate's logarithm is a straight line.

    Returns:
        None where it does not reach the recall. Below its lowest recall, the rate of that point.
    """
    front = pareto_front(points)
    if not front or recall > front[-1][0]:
        return None
    if recall <= front[0][0]:
        return front[0][1]
    for (low, fast), (high, slow) in pairwise(front):
        if recall <= high:
            share = (recall - low) / (high - low)
            return math.exp(math.log(fast) + share * (math.log(slow) - math.log(fast)))
    return None
