from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.special import softmax

from moe.routing.router import Tokens
from moe.routing.switch_and_mixture import SwitchAndMixtureRouter, alignment

LEVELS = st.sampled_from([-1.0, 0.0, 1.0])


def routed(router: SwitchAndMixtureRouter, groups: NDArray[np.float32], experts: NDArray[np.float32]):  # type: ignore[no-untyped-def]
    """The routing of tokens with these logits of groups and of experts."""
    with torch.no_grad():
        both = torch.eye(groups.shape[1] + experts.shape[1])
        router.group_gate.weight.copy_(both[: groups.shape[1]])
        router.gate.weight.copy_(both[groups.shape[1] :])
    return router(Tokens(torch.from_numpy(np.hstack([groups, experts]))))


@given(data=st.data(), tokens=st.integers(0, 5), groups=st.integers(1, 3), size=st.integers(1, 3))
def test_the_best_experts_of_the_best_group_are_taken(
    data: st.DataObject, tokens: int, groups: int, size: int
) -> None:
    k = data.draw(st.integers(1, size))
    of_groups = data.draw(hnp.arrays(np.float32, (tokens, groups), elements=LEVELS))
    of_experts = data.draw(hnp.arrays(np.float32, (tokens, groups * size), elements=LEVELS))
    router = SwitchAndMixtureRouter(groups + groups * size, groups * size, num_groups=groups, top_k=k)
    routing = routed(router, of_groups, of_experts)
    torch.testing.assert_close(routing.scores.sum(1), torch.ones(tokens))
    expected_alignment = 0.0
    for token, (units, weights) in enumerate(routing.gates):
        group = int(of_groups[token].argmax())
        inside = of_experts[token, group * size : (group + 1) * size]
        best = sorted(sorted(range(size), key=lambda e: (-inside[e], e))[:k])
        assert units.tolist() == [group * size + e for e in best]
        assert len({unit // size for unit in units.tolist()}) == 1
        expected = softmax(of_groups[token])[group] * softmax(inside)[best]
        np.testing.assert_allclose(weights.detach(), expected, rtol=1e-5)
        overall = softmax(of_experts[token])
        least = overall[units.numpy()].min()
        others = [overall[e] for e in range(groups * size) if e // size != group]
        expected_alignment += sum(max(0.0, float(p - least)) for p in others) / tokens
    assert routing.losses["alignment"].item() == pytest.approx(expected_alignment, abs=1e-6)


def test_all_experts_of_a_token_are_of_one_group() -> None:
    routing = SwitchAndMixtureRouter(6, 12, num_groups=3, top_k=3)(Tokens(torch.randn(100, 6)))
    groups = routing.gates.units.reshape(100, 3) // 4
    assert (groups == groups[:, :1]).all()
    assert len(groups.unique()) == 3


def test_group_balance_is_one_when_even_and_the_number_of_groups_when_collapsed() -> None:
    router = SwitchAndMixtureRouter(6, 4, num_groups=2, top_k=2)
    experts = np.zeros((4, 4), np.float32)
    even = routed(router, np.float32([[2, 0], [0, 2]] * 2), experts).losses
    assert even["group_balance"].item() == pytest.approx(1.0)
    assert even["load_balance"].item() == pytest.approx(1.0)
    collapsed = routed(router, np.tile(np.float32([40, 0]), (4, 1)), experts).losses
    assert collapsed["group_balance"].item() == pytest.approx(2.0)
    assert collapsed["load_balance"].item() == pytest.approx(2.0)


def test_alignment_is_zero_where_the_best_group_holds_the_best_experts_and_falls_when_it_is_learned() -> None:
    router = SwitchAndMixtureRouter(6, 4, num_groups=2, top_k=1)
    groups = np.float32([[1, 0]])
    assert routed(router, groups, np.float32([[3, 0, 1, 1]])).losses["alignment"].item() == 0.0
    logits = torch.tensor([[0.0, 0.0, 2.0, 2.0]], requires_grad=True)
    loss = alignment(logits.softmax(1), torch.tensor([[0]]), torch.tensor([0]), 2)
    loss.backward()
    assert loss.item() > 0
    assert logits.grad is not None
    assert logits.grad[0, 0] < 0 < logits.grad[0, 2]


def test_weights_are_renormalised_when_asked_for() -> None:
    router = SwitchAndMixtureRouter(6, 8, num_groups=2, top_k=2, renormalise=True)
    gates = router(Tokens(torch.randn(9, 6))).gates
    torch.testing.assert_close(gates.to_dense().sum(1), torch.ones(9))
