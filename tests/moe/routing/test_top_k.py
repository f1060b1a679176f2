from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, softmax

from moe.routing.router import Router, Tokens
from moe.routing.top_k import TopKRouter
from runtime.dispatch import dispatch

Route = Callable[..., Any]
SCORINGS = ["softmax", "softmax_of_selected", "sigmoid"]


@st.composite
def logits_and_k(draw: st.DrawFn) -> tuple[NDArray[np.float32], int]:
    """Quarters from -1 to 1, so that ties are frequent."""
    tokens, experts = draw(st.integers(0, 6)), draw(st.integers(1, 5))
    size = tokens * experts
    quarters = draw(st.lists(st.integers(-4, 4), min_size=size, max_size=size))
    return np.array(quarters, np.float32).reshape(tokens, experts) / 4, draw(st.integers(1, experts))


def slow_top_k(
    logits: NDArray[np.float32], k: int, scoring: str, renormalise: bool
) -> list[tuple[list[int], list[float]]]:
    rows = []
    for row in logits.astype(np.float64):
        best = sorted(sorted(range(len(row)), key=lambda expert: (-row[expert], expert))[:k])
        if scoring == "sigmoid":
            weights = expit(row)[best]
        elif scoring == "softmax":
            weights = softmax(row)[best]
        else:
            weights = softmax(row[best])
        rows.append((best, list(weights / weights.sum() if renormalise else weights)))
    return rows


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("scoring", SCORINGS)
@given(drawn=logits_and_k())
def test_top_k_takes_the_best_logits_and_of_equal_ones_the_lower_expert(
    with_logits: Route, scoring: Any, renormalise: bool, drawn: tuple[NDArray[np.float32], int]
) -> None:
    if scoring == "softmax_of_selected":
        renormalise = True
    logits, k = drawn
    router = TopKRouter(logits.shape[1], logits.shape[1], top_k=k, scoring=scoring, renormalise=renormalise)
    routing = with_logits(router, logits)
    expected = slow_top_k(logits, k, scoring, renormalise)
    for (units, weights), (slow_units, slow_weights) in zip(routing.gates, expected, strict=True):
        assert units.tolist() == slow_units
        np.testing.assert_allclose(weights.detach(), slow_weights, rtol=1e-5)
    assert routing.capacity is None


@given(drawn=logits_and_k())
def test_renormalised_softmax_is_softmax_of_the_selected(
    with_logits: Route, drawn: tuple[NDArray[np.float32], int]
) -> None:
    logits, k = drawn
    before = with_logits(TopKRouter(logits.shape[1], logits.shape[1], top_k=k), logits)
    after = with_logits(
        TopKRouter(logits.shape[1], logits.shape[1], top_k=k, scoring="softmax_of_selected"), logits
    )
    torch.testing.assert_close(before.gates.weights, after.gates.weights)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_renormalised_weights_add_up_to_one_and_others_do_not(with_logits: Route, scoring: Any) -> None:
    logits = np.array([[0.5, -3.0, 0.25, 1.0]], np.float32)
    whole = with_logits(TopKRouter(4, 4, scoring=scoring), logits).gates.weights
    assert whole.sum().item() == pytest.approx(1.0)
    if scoring != "softmax_of_selected":
        raw = with_logits(TopKRouter(4, 4, scoring=scoring, renormalise=False), logits).gates.weights
        assert abs(raw.sum().item() - 1) > 0.05


def test_logits_that_differ_are_told_apart_where_their_probabilities_are_equal(with_logits: Route) -> None:
    logits = np.array([[0.0, 1e-9, 2e-9]], np.float32)
    routing = with_logits(TopKRouter(3, 3, top_k=1), logits)
    assert routing.scores[0, 0] == routing.scores[0, 2]
    assert routing.gates.units.tolist() == [2]


def test_sigmoids_that_vanish_give_weights_of_zero_and_not_nan(with_logits: Route) -> None:
    routing = with_logits(TopKRouter(2, 2, scoring="sigmoid"), np.full((1, 2), -200, np.float32))
    assert routing.gates.weights.tolist() == [0.0, 0.0]
    assert routing.losses["load_balance"].isfinite()


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_load_balance_is_one_when_even_and_the_number_of_experts_over_k_when_collapsed(
    with_logits: Route, scoring: Any, k: int
) -> None:
    # Each expert is the favourite of one token in turn; the rest follow in a circle.
    even = np.stack([np.roll(np.linspace(0.4, 0.1, 4), shift) for shift in range(4)]).astype(np.float32)
    routing = with_logits(TopKRouter(4, 4, top_k=k, scoring=scoring), even)
    assert routing.losses["load_balance"].item() == pytest.approx(1.0)
    if scoring != "sigmoid":
        collapsed = np.tile(np.where(np.arange(4) < k, 60, -60), (5, 1)).astype(np.float32)
        routing = with_logits(TopKRouter(4, 4, top_k=k, scoring=scoring), collapsed)
        assert routing.losses["load_balance"].item() == pytest.approx(4 / k)


def test_the_balance_loss_of_each_layer_shows_a_collapse_that_a_pool_of_layers_would_hide(
    with_logits: Route,
) -> None:
    routings = [
        with_logits(TopKRouter(2, 2, top_k=1), np.tile(row, (3, 1)).astype(np.float32))
        for row in ([40.0, -40.0], [-40.0, 40.0])
    ]
    assert [routing.losses["load_balance"].item() for routing in routings] == pytest.approx([2.0, 2.0])


def test_the_z_loss_is_the_mean_squared_logsumexp_of_the_logits(with_logits: Route) -> None:
    logits = np.array([[0.0, 0.0], [1.0, 2.0]], np.float32)
    expected = np.mean(np.log(np.exp(logits.astype(np.float64)).sum(1)) ** 2)
    assert with_logits(TopKRouter(2, 2), logits).losses["z"].item() == pytest.approx(expected)


def test_capacity_counts_all_entries(with_logits: Route) -> None:
    logits = np.tile(np.array([2.0, 1.0, 0.0, 0.0], np.float32), (6, 1))
    routing = with_logits(TopKRouter(4, 4, capacity_factor=1.0), logits)
    assert routing.capacity == 3
    routed = dispatch(routing.gates, routing.capacity)
    assert routed.load.tolist() == [3, 3, 0, 0]
    assert routed.rows.tolist() == [0, 1, 2, 0, 1, 2]


def test_copies_of_one_block_equal_the_block_only_when_weights_are_renormalised() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(9, 8)
    block = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.SiLU(), torch.nn.Linear(16, 8))
    dense = block(hidden)
    differences = []
    for renormalise in (True, False):
        router: Router = TopKRouter(8, 4, renormalise=renormalise)
        gates = router(Tokens(hidden)).gates.to_dense()
        sparse = sum(gates[:, expert, None] * block(hidden) for expert in range(4))
        differences.append((sparse - dense).abs().max().item())
    assert differences[0] < 1e-6
    assert differences[1] > 1e-2


def test_gradients_of_the_weights_are_right() -> None:
    router = TopKRouter(3, 4, top_k=2).double()
    hidden = torch.randn(5, 3)
    direction = torch.randn(10)

    def loss(weight: torch.Tensor) -> torch.Tensor:
        logits = hidden.double() @ weight.T
        chosen = router(Tokens(hidden)).gates.units.reshape(-1, 2).long()
        return (logits.gather(1, chosen).softmax(1).reshape(-1) * direction).sum()

    weight = router.gate.weight.detach().clone().requires_grad_()
    loss(weight).backward()
    (router(Tokens(hidden)).gates.weights * direction).sum().backward()
    torch.testing.assert_close(router.gate.weight.grad, weight.grad, rtol=1e-4, atol=1e-6)
