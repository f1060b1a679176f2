"""The paired comparison and its randomisation test."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.comparison import EXACT_UP_TO, compare, randomisation_test
from evals.metrics import MEASURES, QueryMetrics
from runtime.errors import InputError


def metrics(values: list[float]) -> QueryMetrics:
    return {f"q{number}": dict.fromkeys(MEASURES, value) for number, value in enumerate(values)}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=8))
def test_few_queries_are_tested_exactly(differences: list[int]) -> None:
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in product((-1, 1), repeat=len(differences))
    ]
    expected = sum(value >= abs(sum(differences)) for value in sums) / len(sums)
    # Tenths, which floating point cannot hold: sums that are equal in exact arithmetic must count as equal.
    assert randomisation_test(np.array(differences) / 10) == pytest.approx(expected)


def test_many_queries_agree_with_the_exact_test() -> None:
    differences = np.random.default_rng(3).normal(0.05, 0.2, EXACT_UP_TO)
    exact = randomisation_test(differences)
    # 60 more queries whose differences are too small to matter leave the answer alone but force sampling.
    sampled = randomisation_test(np.concatenate([differences, np.full(60, 1e-7)]))
    assert sampled == pytest.approx(exact, abs=0.015)


def test_the_test_agrees_with_the_t_test_on_ordinary_differences() -> None:
    stats = pytest.importorskip("scipy.stats")
    differences = np.random.default_rng(5).normal(0.02, 0.15, 300)
    assert randomisation_test(differences) == pytest.approx(
        stats.ttest_1samp(differences, 0).pvalue, abs=0.01
    )


def test_a_clear_difference_is_significant_and_never_certain() -> None:
    p = randomisation_test(np.full(200, 0.1))
    assert 0 < p < 1e-3


def test_equal_systems_have_p_one() -> None:
    found = compare(metrics([0.5, 0.0, 1.0]), metrics([0.5, 0.0, 1.0]))
    assert {row.p_value for row in found.measures} == {1.0}
    assert {row.ties for row in found.measures} == {3}


def test_wins_and_losses_are_those_of_the_second_system() -> None:
    found = compare(metrics([0.1, 0.2, 0.3, 0.4]), metrics([0.2, 0.3, 0.1, 0.4]))
    for row in found.measures:
        assert (row.wins, row.losses, row.ties) == (2, 1, 1)
        assert row.difference == pytest.approx(0.0)
        assert row.p_value == 1.0


def test_exchanging_the_systems_keeps_the_p_value() -> None:
    a, b = metrics([0.1, 0.4, 0.9, 0.3, 0.2]), metrics([0.3, 0.5, 0.8, 0.6, 0.4])
    forth, back = compare(a, b).measures[0], compare(b, a).measures[0]
    assert forth.p_value == back.p_value
    assert forth.difference == -back.difference


def test_only_common_queries_are_compared() -> None:
    found = compare(metrics([0.1, 0.2]), {**metrics([0.1]), "other": dict.fromkeys(MEASURES, 1.0)})
    assert found.queries == ["q0"]
    assert found.left_out == 2


def test_no_common_query_is_an_error() -> None:
    with pytest.raises(InputError, match="no query in common"):
        compare(metrics([0.1]), {"other": dict.fromkeys(MEASURES, 1.0)})
