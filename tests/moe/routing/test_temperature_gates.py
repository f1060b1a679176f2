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
from scipy.special import expit, softmax

from moe.routing.activation_gate import ActivationGateRouter
from moe.routing.dense_to_sparse import DenseToSparseRouter
from moe.routing.router import Tokens
from moe.routing.temperature import Temperature, set_steps
from runtime.errors import UsageError

Route = Callable[..., Any]
GATES = [DenseToSparseRouter, ActivationGateRouter]


def bias_of(router: Any) -> torch.nn.Parameter:
    bias: torch.nn.Parameter = router.bias if isinstance(router, ActivationGateRouter) else router.gate.bias
    return bias


@pytest.mark.parametrize("kind", GATES)
@given(
    logits=hnp.arrays(
        np.float32, st.tuples(st.integers(0, 5), st.just(4)), elements=st.sampled_from([-2.0, 0.0, 0.5, 2.0])
    ),
    temperature=st.sampled_from([0.1, 0.5, 2.0]),
    threshold=st.sampled_from([0.0, 0.01, 0.2]),
)
def test_gates_are_the_softmax_at_a_temperature_where_it_reaches_the_threshold(
    with_logits: Route, kind: Any, logits: NDArray[np.float32], temperature: float, threshold: float
) -> None:
    router = kind(4, 4, start=temperature, end=temperature, threshold=threshold)
    bias = np.array([0.3, 0.0, -0.2, 0.0])
    with torch.no_grad():
        bias_of(router).copy_(torch.from_numpy(bias))
    routing = with_logits(router, logits)
    exact = logits.astype(np.float64)
    exact = exact + bias if kind is DenseToSparseRouter else expit(exact) + bias
    expected = softmax(exact / temperature, axis=1)
    np.testing.assert_allclose(routing.scores.detach(), expected, rtol=1e-4)
    scores = routing.scores.detach().numpy()
    for row, (units, weights) in zip(scores, routing.gates, strict=True):
        kept = [e for e in range(4) if row[e] >= np.float32(threshold) or e == int(row.argmax())]
        assert units.tolist() == kept
        assert weights.tolist() == row[kept].tolist()


@pytest.mark.parametrize("kind", GATES)
def test_a_low_temperature_is_one_hot_and_a_high_one_uniform(kind: Any) -> None:
    hidden = 30 * torch.randn(50, 6)
    cold = kind(6, 4, start=1e-6, end=1e-6)(Tokens(hidden))
    assert cold.gates.indptr.diff().tolist() == [1] * 50
    torch.testing.assert_close(cold.gates.weights, torch.ones(50))
    warm = kind(6, 4, start=1e6, end=1e6)(Tokens(hidden))
    assert warm.gates.indptr.diff().tolist() == [4] * 50
    torch.testing.assert_close(warm.gates.weights, torch.full((200,), 0.25), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", GATES)
def test_of_equal_logits_a_low_temperature_with_a_threshold_keeps_all(kind: Any) -> None:
    routing = kind(6, 4, start=1e-3, end=1e-3)(Tokens(torch.zeros(2, 6)))
    assert routing.gates.indptr.diff().tolist() == [4, 4]
    assert routing.losses["load_balance"].item() == pytest.approx(1.0)


def test_the_activation_bounds_what_the_matrix_can_say() -> None:
    routing = ActivationGateRouter(6, 4, start=1.0, end=1.0)(Tokens(1e6 * torch.randn(50, 6)))
    assert (routing.scores.amax(1) / routing.scores.amin(1)).max() <= np.e + 1e-4


def test_ever_fewer_experts_are_kept_as_the_temperature_falls() -> None:
    router = DenseToSparseRouter(6, 8, start=10.0, end=0.001, steps=10)
    hidden = 20 * torch.randn(50, 6)
    kept = []
    for step in (0, 3, 5, 7, 10):
        assert set_steps(router, step) == 1
        kept.append(router(Tokens(hidden)).gates.nnz)
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == 400
    assert kept[-1] < 100


@pytest.mark.parametrize(
    ("decay", "expected"), [("exponential", [4.0, 2.0, 1.0, 1.0]), ("linear", [4.0, 2.5, 1.0, 1.0])]
)
def test_temperatures_fall_and_stay(decay: Any, expected: list[float]) -> None:
    temperature = Temperature(4.0, 1.0, 10, decay)
    seen = []
    for step in (0, 5, 10, 1000):
        temperature.set_step(step)
        seen.append(1 / temperature(torch.ones(1)).item())
    assert seen == pytest.approx(expected)
    with pytest.raises(UsageError, match="count from 0"):
        temperature.set_step(-1)


def test_the_step_is_saved_with_the_model() -> None:
    router = DenseToSparseRouter(6, 4)
    set_steps(router, 7)
    other = DenseToSparseRouter(6, 4)
    other.load_state_dict(router.state_dict())
    assert other.temperature.step.item() == 7
