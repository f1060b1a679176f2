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

from moe.routing.expert_choice import ExpertChoiceRouter
from moe.routing.router import Tokens
from runtime.dispatch import dispatch
from runtime.errors import UsageError

Route = Callable[..., Any]


@given(
    logits=hnp.arrays(
        np.float32,
        st.tuples(st.integers(0, 8), st.integers(1, 4)),
        elements=st.sampled_from([-1.0, 0.0, 1.0]),
    ),
    factor=st.sampled_from([0.25, 0.5, 1.0, 1.5, 4.0]),
)
def test_each_expert_takes_its_likeliest_tokens_and_of_equal_ones_the_lower(
    with_logits: Route, logits: NDArray[np.float32], factor: float
) -> None:
    tokens, experts = logits.shape
    routing = with_logits(ExpertChoiceRouter(experts, experts, capacity_factor=factor), logits)
    capacity = -int(-factor * tokens // experts)
    scores = routing.scores.detach().numpy()
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)
    expected: list[list[int]] = [[] for _ in range(tokens)]
    for expert in range(experts):
        ranking = sorted(range(tokens), key=lambda token: (-scores[token, expert], token))
        for token in ranking[:capacity]:
            expected[token].append(expert)
    for token, (units, weights) in enumerate(routing.gates):
        assert units.tolist() == expected[token]
        assert weights.tolist() == [scores[token, expert] for expert in expected[token]]


@pytest.mark.parametrize(("tokens", "factor", "capacity"), [(12, 1.0, 3), (12, 0.5, 2), (10, 2.0, 5)])
def test_every_expert_has_exactly_its_capacity(tokens: int, factor: float, capacity: int) -> None:
    router = ExpertChoiceRouter(6, 4, capacity_factor=factor)
    routing = router(Tokens(torch.randn(tokens, 6)))
    assert routing.capacity == capacity
    routed = dispatch(routing.gates, routing.capacity)
    assert routed.load.tolist() == [capacity] * 4
    assert not len(routed.dropped)


@pytest.mark.parametrize("factor", ["x", 0, -1.0, float("nan"), float("inf"), True, None])
def test_a_capacity_factor_is_a_number_above_zero(factor: Any) -> None:
    with pytest.raises(UsageError, match="capacity factor"):
        ExpertChoiceRouter(6, 4, capacity_factor=factor)


def test_later_tokens_change_what_earlier_ones_get() -> None:
    router = ExpertChoiceRouter(2, 2, capacity_factor=0.5)
    with torch.no_grad():
        router.gate.weight.copy_(torch.eye(2))
    hidden = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 3.0]])
    early = router(Tokens(hidden[:2])).gates.to_dense()
    late = router(Tokens(torch.cat([hidden[:2], hidden[2:].repeat(3, 1)]))).gates.to_dense()
    assert early.count_nonzero() == 2
    assert late[:2].count_nonzero() == 0
