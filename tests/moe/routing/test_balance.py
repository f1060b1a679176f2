from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe.routing.balance import BiasBalance, update_biases
from moe.routing.router import Tokens
from moe.routing.top_k import TopKRouter
from runtime.meter import ActivityMeter


@given(loads=st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), max_size=4))
def test_the_bias_moves_by_the_sign_of_the_error_of_the_load(loads: list[list[int]]) -> None:
    balance = BiasBalance(3, rate=0.5)
    expected = [0.0, 0.0, 0.0]
    for load in loads:
        balance.load += torch.tensor(load)
        balance.update()
        mean = sum(load) / 3
        expected = [
            bias + (0.5 if one < mean else -0.5 if one > mean else 0.0)
            for bias, one in zip(expected, load, strict=True)
        ]
        assert balance.load.tolist() == [0, 0, 0]
    assert balance.bias.tolist() == expected


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "softmax_of_selected"])
def test_the_bias_decides_the_selection_and_never_the_weight(scoring: str) -> None:
    router = TopKRouter(6, 4, scoring=scoring, balance_rate=0.1)  # type: ignore[arg-type]
    hidden = torch.randn(20, 6)
    before = router(Tokens(hidden))
    assert router.balance is not None
    router.balance.bias += torch.tensor([5.0, 4.0, 0.0, 0.0])
    after = router(Tokens(hidden))
    assert after.gates.units.reshape(20, 2).tolist() == [[0, 1]] * 20
    assert after.scores.tolist() == before.scores.tolist()
    logits = hidden @ router.gate.weight[:2].T
    weights = logits.softmax(1)
    if scoring == "sigmoid":
        weights = logits.sigmoid() / logits.sigmoid().sum(1, keepdim=True)
    torch.testing.assert_close(after.gates.weights.reshape(20, 2), weights)


def test_the_bias_is_outside_autograd_and_saved_and_counts_are_not() -> None:
    router = TopKRouter(6, 4, balance_rate=0.1)
    router(Tokens(torch.randn(20, 6))).gates.weights.sum().backward()
    assert [name for name, _ in router.named_parameters()] == ["gate.weight"]
    assert sorted(router.state_dict()) == ["balance.bias", "gate.weight"]
    assert update_biases(torch.nn.ModuleList([router, torch.nn.Linear(2, 2)])) == 1
    other = TopKRouter(6, 4, balance_rate=0.1)
    other.load_state_dict(router.state_dict())
    assert other.balance is not None
    assert router.balance is not None
    assert other.balance.bias.tolist() == router.balance.bias.tolist() != [0.0] * 4
    assert not other.balance.bias.requires_grad


def test_load_is_counted_in_training_only_and_over_all_batches_of_a_step() -> None:
    router = TopKRouter(6, 4, balance_rate=0.1)
    assert router.balance is not None
    meter = ActivityMeter(4)
    for _ in range(3):
        meter.update(router(Tokens(torch.randn(20, 6))).gates)
    assert router.balance.load.tolist() == meter.load.tolist()
    router.eval()(Tokens(torch.randn(20, 6)))
    assert router.balance.load.tolist() == meter.load.tolist()


def test_updates_even_out_a_router_that_favours_some_experts() -> None:
    router = TopKRouter(6, 8, top_k=1, balance_rate=0.01)
    with torch.no_grad():
        router.gate.weight.normal_(std=0.3)
    hidden = torch.randn(400, 6) + 1
    loads = []
    for _ in range(150):
        gates = router(Tokens(hidden)).gates
        loads.append(torch.bincount(gates.units, minlength=8).max().item() / 50)
        update_biases(router)
    assert loads[0] > 2
    assert loads[-1] < 1.4


def test_small_steps_survive_a_conversion_to_bfloat16() -> None:
    router = TopKRouter(6, 2, balance_rate=1e-3)
    assert router.balance is not None
    router.balance.bias += torch.tensor([0.5, -0.5])
    router.bfloat16()
    router.balance.load += torch.tensor([0, 2])
    router.balance.update()
    assert router.gate.weight.dtype == torch.bfloat16
    assert router.balance.bias.tolist() == pytest.approx([0.501, -0.501])
