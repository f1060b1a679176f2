from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import expit

from moe.routing.balanced_assignment import balanced_assignment
from moe.routing.base import BaseRouter
from moe.routing.router import Tokens
from runtime.errors import InputError

Route = Callable[..., Any]

some_scores = hnp.arrays(
    np.float32,
    st.tuples(st.integers(0, 12), st.integers(1, 5)),
    elements=st.one_of(st.sampled_from([-1.0, 0.0, 1.0]), st.floats(-9, 9, width=32)),
)


def highest_sum(scores: NDArray[np.float32]) -> float:
    """By the Hungarian method: a column per place of an expert, and rows that stand for places left empty."""
    tokens, experts = scores.shape
    least, beyond = divmod(tokens, experts)
    places = np.repeat(scores.astype(np.float64), least, axis=1)
    extra = scores.astype(np.float64)
    empty = np.hstack(
        [np.full((experts - beyond, places.shape[1]), -1e6), np.zeros((experts - beyond, experts))]
    )
    square = np.vstack([np.hstack([places, extra]), empty])
    rows, columns = linear_sum_assignment(square, maximize=True)
    return float(square[rows, columns].sum())


@given(scores=some_scores)
def test_the_assignment_is_even_and_has_the_highest_sum(scores: NDArray[np.float32]) -> None:
    experts = balanced_assignment(scores)
    tokens, num_experts = scores.shape
    load = np.bincount(experts, minlength=num_experts)
    assert (load.max() - load.min() <= 1) if tokens else not len(experts)
    total = scores.astype(np.float64)[np.arange(tokens), experts].sum()
    assert total == pytest.approx(highest_sum(scores) if tokens else 0.0, abs=1e-6)


def test_a_larger_assignment_has_the_highest_sum_even_when_all_tokens_want_the_same() -> None:
    rng = np.random.default_rng(0)
    for bias in (0.0, 5.0):
        scores = (rng.normal(size=(300, 8)) + bias * np.arange(8)).astype(np.float32)
        experts = balanced_assignment(scores)
        assert sorted(set(np.bincount(experts, minlength=8).tolist())) == [37, 38]
        total = scores.astype(np.float64)[np.arange(300), experts].sum()
        assert total == pytest.approx(highest_sum(scores), abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 3e38])
def test_equal_scores_are_dealt_out_evenly(value: float) -> None:
    experts = balanced_assignment(np.full((8, 4), value, np.float32))
    assert np.bincount(experts).tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_scores_that_have_no_sum_are_an_input_error(bad: float) -> None:
    with pytest.raises(InputError, match="finite"):
        balanced_assignment(np.array([[0.0, bad]], np.float32))


def test_training_is_balanced_and_evaluation_greedy_and_both_weigh_by_the_sigmoid(with_logits: Route) -> None:
    logits = np.array([[2.0, 1.0], [3.0, 0.0], [1.0, 1.0], [5.0, 4.5]], np.float32)
    router = BaseRouter(2, 2)
    trained = with_logits(router, logits).gates
    assert trained.units.tolist() == [0, 0, 1, 1]
    greedy = with_logits(router.eval(), logits).gates
    assert greedy.units.tolist() == [0, 0, 0, 0]
    for gates in (trained, greedy):
        expected = expit(logits[np.arange(4), gates.units.numpy()])
        np.testing.assert_allclose(gates.weights.detach().numpy(), expected, rtol=1e-6)


def test_training_loads_differ_by_at_most_one() -> None:
    router = BaseRouter(8, 4)
    gates = router(Tokens(torch.randn(30, 8) + 3)).gates
    assert sorted(torch.bincount(gates.units, minlength=4).tolist()) == [7, 7, 8, 8]
