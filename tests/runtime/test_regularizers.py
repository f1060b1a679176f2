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
from scipy.special import logsumexp, softmax

from runtime.activations import SparseActivations
from runtime.errors import UsageError
from runtime.regularizers import (
    Constant,
    QuadraticRamp,
    flops,
    idf_flops,
    l1,
    load_balance,
    mean_activity,
    z_loss,
)
from runtime.select import TopK

weights_of = hnp.arrays(
    np.float64, st.tuples(st.integers(0, 4), st.integers(1, 5)), elements=st.floats(-50, 50)
)
IDF = np.array([0.5, 1.0, 2.0])


def on_both(function: Callable[..., Any], *arrays: NDArray[Any]) -> float:
    """The value on NumPy arrays, after checking that torch gives the same."""
    value = function(*arrays)
    tensor = function(*map(torch.from_numpy, arrays))
    assert tensor.shape == ()
    np.testing.assert_allclose(tensor.item(), value, rtol=1e-12, atol=1e-12)
    return float(value)


@given(weights=weights_of)
def test_flops_is_the_sum_of_squared_mean_activities(weights: NDArray[Any]) -> None:
    rows = max(len(weights), 1)
    expected = sum((sum(abs(w) for w in column) / rows) ** 2 for column in weights.T)
    assert on_both(flops, weights) == pytest.approx(expected)


@given(weights=weights_of)
def test_idf_flops_divides_activities_by_idf(weights: NDArray[Any]) -> None:
    idf = np.arange(1, weights.shape[1] + 1) / 2
    assert on_both(idf_flops, weights, idf) == pytest.approx(flops(weights / idf))
    assert idf_flops(weights, np.ones_like(idf)) == pytest.approx(flops(weights))


@given(weights=weights_of)
def test_l1_is_the_mean_over_rows_of_their_norms(weights: NDArray[Any]) -> None:
    expected = np.mean(np.abs(weights).sum(1)) if len(weights) else 0.0
    assert on_both(l1, weights) == pytest.approx(expected)


@given(logits=weights_of)
def test_z_loss_is_the_mean_squared_logsumexp(logits: NDArray[Any]) -> None:
    expected = np.mean(logsumexp(logits, axis=1) ** 2) if len(logits) else 0.0
    assert on_both(z_loss, logits) == pytest.approx(expected)


def test_z_loss_survives_large_logits() -> None:
    assert on_both(z_loss, np.array([[1000.0, 1000.0]])) == pytest.approx((1000 + np.log(2)) ** 2)


@pytest.mark.parametrize("shape", [(3, 0), (0, 0), (4,)])
def test_z_loss_needs_units(shape: tuple[int, ...]) -> None:
    for logits in (np.zeros(shape), torch.zeros(shape)):
        with pytest.raises(UsageError, match="1 unit or more"):
            z_loss(logits)


def test_z_loss_of_no_rows_is_zero() -> None:
    assert on_both(z_loss, np.zeros((0, 3))) == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([-np.inf, -np.inf], np.inf),
        ([-np.inf, 2.0], 4.0),
        ([np.inf, 0.0], np.inf),
        ([np.inf, -np.inf], np.inf),
        ([np.nan, 0.0], np.nan),
    ],
)
def test_z_loss_of_infinite_logits_is_its_limit(row: list[float], expected: float) -> None:
    assert on_both(z_loss, np.array([row])) == pytest.approx(expected, nan_ok=True)
    assert on_both(z_loss, np.array([row, [0.0, -np.inf]])) == pytest.approx(expected / 2, nan_ok=True)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_load_balance_is_one_when_even_for_any_k(k: int) -> None:
    chosen = (np.arange(4)[:, None] + np.arange(k)) % 4
    selected = SparseActivations.from_topk(chosen, np.ones((4, k)), 4)
    probabilities = np.full((4, 4), 0.25)
    assert load_balance(selected, probabilities) == pytest.approx(1.0)
    assert load_balance(selected.torch(), torch.from_numpy(probabilities)).item() == pytest.approx(1.0)


def test_load_balance_is_the_number_of_experts_when_collapsed() -> None:
    probabilities = np.tile([1.0, 0.0, 0.0], (5, 1))
    assert load_balance(TopK(1)(probabilities), probabilities) == pytest.approx(3.0)


@given(logits=weights_of, k=st.integers(1, 3))
def test_load_balance_of_top_1_is_by_definition(logits: NDArray[Any], k: int) -> None:
    probabilities = softmax(logits, axis=1)
    selected = TopK(k)(probabilities)
    num_experts = logits.shape[1]
    expected = 0.0
    for expert in range(num_experts if len(logits) else 0):
        share = np.mean(selected.units == expert)
        expected += num_experts * share * probabilities[:, expert].mean()
    tensor = torch.from_numpy(probabilities)
    assert load_balance(selected, probabilities) == pytest.approx(expected)
    assert load_balance(selected.torch(), tensor).item() == pytest.approx(expected)


def test_pooled_layers_hide_a_collapse_that_single_layers_show() -> None:
    layers = [np.tile(np.eye(2)[expert], (3, 1)) for expert in range(2)]
    assert [load_balance(TopK(1)(layer), layer) for layer in layers] == [2.0, 2.0]
    pooled = np.concatenate(layers)
    assert load_balance(TopK(1)(pooled), pooled) == 1.0


@pytest.mark.parametrize(
    "function",
    [
        flops,
        l1,
        z_loss,
        mean_activity,
        lambda weights: idf_flops(weights, torch.from_numpy(IDF)),
        lambda weights: load_balance(TopK(2)(weights.detach()), weights.softmax(1)),
    ],
)
def test_gradients_are_right(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    weights = torch.tensor([[0.3, -1.2, 2.0], [0.7, 0.1, -0.4]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (weights,))


def test_what_does_not_fit_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="idf must be positive"):
        idf_flops(np.ones((1, 2)), np.array([1.0, 0.0]))
    with pytest.raises(UsageError, match="do not fit"):
        load_balance(SparseActivations.empty(2, 3), np.ones((2, 4)))
    with pytest.raises(UsageError, match="1 step or more"):
        QuadraticRamp(1.0, 0)


def test_the_ramp_rises_quadratically_and_stays() -> None:
    ramp = QuadraticRamp(strength=0.4, steps=10)
    assert [ramp(step) for step in (0, 5, 10, 1000)] == pytest.approx([0.0, 0.1, 0.4, 0.4])
    assert [Constant(0.4)(step) for step in (0, 7)] == [0.4, 0.4]
