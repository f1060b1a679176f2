from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from moe.routing.router import Tokens
from moe.routing.threshold import ThresholdRouter

Route = Callable[..., Any]

tied_logits = hnp.arrays(
    np.float32,
    st.tuples(st.integers(0, 5), st.integers(1, 5)),
    elements=st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0]),
)


@given(logits=tied_logits, threshold=st.sampled_from([0.05, 0.3, 0.55, 0.9, 0.99]))
def test_experts_are_taken_while_those_before_them_are_not_enough(
    with_logits: Route, logits: NDArray[np.float32], threshold: float
) -> None:
    routing = with_logits(ThresholdRouter(logits.shape[1], logits.shape[1], threshold=threshold), logits)
    for row, (units, weights) in zip(routing.scores.detach().double().numpy(), routing.gates, strict=True):
        taken: list[int] = []
        before = 0.0
        for expert in sorted(range(len(row)), key=lambda expert: (-row[expert], expert)):
            if before < threshold * row.sum():
                taken.append(expert)
            before += row[expert]
        assert units.tolist() == sorted(taken)
        np.testing.assert_array_equal(weights.detach().double(), row[sorted(taken)])


@given(logits=tied_logits, threshold=st.sampled_from([0.05, 0.35, 0.55, 0.9]))
def test_no_smaller_set_of_experts_reaches_the_threshold(
    with_logits: Route, logits: NDArray[np.float32], threshold: float
) -> None:
    routing = with_logits(ThresholdRouter(logits.shape[1], logits.shape[1], threshold=threshold), logits)
    for row, (units, weights) in zip(routing.scores.detach().double().numpy(), routing.gates, strict=True):
        assert weights.sum().item() >= threshold - 1e-6
        if len(units) > 1:
            assert all(
                row[list(few)].sum() < threshold for few in combinations(range(len(row)), len(units) - 1)
            )


def test_a_threshold_near_zero_is_top_1_and_one_of_one_takes_all() -> None:
    hidden = torch.randn(20, 6)
    router = ThresholdRouter(6, 5, threshold=1e-30)
    routing = router(Tokens(hidden))
    assert routing.gates.indptr.diff().tolist() == [1] * 20
    assert routing.gates.units.tolist() == routing.scores.argmax(1).tolist()
    router.threshold = 1.0
    assert router(Tokens(hidden)).gates.indptr.diff().tolist() == [5] * 20


def test_renormalised_weights_add_up_to_one_in_rows_of_any_length() -> None:
    hidden = 40 * torch.randn(20, 6)
    gates = ThresholdRouter(6, 5, threshold=0.6, renormalise=True)(Tokens(hidden)).gates
    assert len(set(gates.indptr.diff().tolist())) > 1
    torch.testing.assert_close(gates.to_dense().sum(1), torch.ones(20))


def test_load_balance_is_one_when_even(with_logits: Route) -> None:
    routing = with_logits(ThresholdRouter(4, 4, threshold=0.5), 2 * np.eye(4, dtype=np.float32))
    assert routing.losses["load_balance"].item() == pytest.approx(1.0)
