"""Pareto fronts, and rates at a recall between their points."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.search_bench.front import pareto_front, rate_at

POINTS = st.lists(st.tuples(st.floats(0, 1), st.floats(1, 1e6)), min_size=1, max_size=20)


@given(POINTS)
def test_the_front_is_what_no_other_point_beats(points: list[tuple[float, float]]) -> None:
    beaten = [
        point
        for point in points
        if any(other[0] >= point[0] and other[1] >= point[1] and other != point for other in points)
    ]
    assert pareto_front(points) == sorted(set(points) - set(beaten))


@given(POINTS)
def test_at_its_own_points_the_rate_is_theirs(points: list[tuple[float, float]]) -> None:
    for recall, rate in pareto_front(points):
        assert rate_at(points, recall) == pytest.approx(rate)


def test_between_points_the_logarithm_is_interpolated() -> None:
    points = [(0.9, 1000.0), (1.0, 10.0)]
    assert rate_at(points, 0.95) == pytest.approx(100.0)
    assert rate_at(points, 0.925) == pytest.approx(math.sqrt(1000 * 100))


def test_a_recall_out_of_reach_has_no_rate_and_one_below_all_the_fastest() -> None:
    points = [(0.9, 1000.0), (0.99, 10.0)]
    assert rate_at(points, 0.995) is None
    assert rate_at(points, 0.5) == 1000.0
    assert rate_at([], 0.5) is None
