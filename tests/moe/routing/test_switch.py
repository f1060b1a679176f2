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
from scipy.special import softmax

from moe.routing.router import Tokens
from moe.routing.switch import SwitchRouter
from runtime.dispatch import dispatch

Route = Callable[..., Any]

tied_logits = hnp.arrays(
    np.float32,
    st.tuples(st.integers(0, 6), st.integers(1, 5)),
    elements=st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]),
)


@given(logits=tied_logits, factor=st.sampled_from([0.5, 1.0, 1.25, None]))
def test_switch_takes_the_likeliest_expert_and_its_first_tokens_up_to_the_capacity(
    with_logits: Route, logits: NDArray[np.float32], factor: float | None
) -> None:
    tokens, experts = logits.shape
    routing = with_logits(SwitchRouter(experts, experts, capacity_factor=factor).eval(), logits)
    capacity = tokens if factor is None else -int(-factor * tokens // experts)
    expected: list[list[tuple[int, float]]] = [[] for _ in range(experts)]
    for token, row in enumerate(logits.tolist()):
        expert = row.index(max(row))
        if len(expected[expert]) < capacity:
            expected[expert].append((token, softmax(row)[expert]))
    routed = dispatch(routing.gates, routing.capacity)
    for expert, taken in enumerate(expected):
        entries = slice(*routed.offsets[expert : expert + 2].tolist())
        assert routed.rows[entries].tolist() == [token for token, _ in taken]
        np.testing.assert_allclose(
            routed.weights[entries].detach(), [weight for _, weight in taken], rtol=1e-5
        )


def test_load_balance_is_one_when_even_and_the_number_of_experts_when_collapsed(with_logits: Route) -> None:
    router = SwitchRouter(4, 4, jitter=0.0)
    even = with_logits(router, 3 * np.eye(4, dtype=np.float32))
    assert even.losses["load_balance"].item() == pytest.approx(1.0)
    collapsed = with_logits(router, np.tile(np.float32([50, 0, 0, 0]), (8, 1)))
    assert collapsed.losses["load_balance"].item() == pytest.approx(4.0)


def test_jitter_multiplies_hidden_states_in_training_only() -> None:
    hidden = torch.randn(200, 8)
    router = SwitchRouter(8, 4, jitter=0.2)
    exact = (hidden @ router.gate.weight.T).softmax(1)
    jittered = router(Tokens(hidden)).scores
    assert (jittered - router(Tokens(hidden)).scores).abs().max() > 1e-4
    assert (jittered - exact).abs().max() > 1e-4
    torch.testing.assert_close(router.eval()(Tokens(hidden)).scores, exact)


def test_jitter_stays_within_its_bounds(with_logits: Route) -> None:
    logits = np.tile(np.float32([1.0, 0.0]), (500, 1))
    scores = with_logits(SwitchRouter(2, 2, jitter=0.1), logits).scores
    seen = (scores[:, 0] / scores[:, 1]).log()
    assert 0.9 <= seen.min() < 0.92
    assert 1.08 < seen.max() <= 1.1 + 1e-6
