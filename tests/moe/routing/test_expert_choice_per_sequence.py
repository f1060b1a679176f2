"""Expert choice within each sequence: as if every sequence were alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from moe.routing import Tokens  # noqa: E402
from moe.routing.expert_choice import ExpertChoiceRouter  # noqa: E402
from runtime.errors import InputError, UsageError  # noqa: E402


@given(
    lengths=st.lists(st.integers(1, 9), max_size=5),
    experts=st.integers(1, 5),
    factor=st.sampled_from([0.1, 0.5, 1.0, 1.1, 2.0, 7.0]),
    seed=st.integers(0, 99),
)
def test_a_sequence_is_routed_as_if_it_were_alone(
    lengths: list[int], experts: int, factor: float, seed: int
) -> None:
    router = ExpertChoiceRouter(experts, experts, capacity_factor=factor, per_sequence=True)
    alone = ExpertChoiceRouter(experts, experts, capacity_factor=factor)
    with torch.no_grad():
        for one in (router, alone):
            one.gate.weight.copy_(torch.eye(experts))
    # few values, so that many tokens tie
    hidden = torch.randint(3, (sum(lengths), experts), generator=torch.Generator().manual_seed(seed)).float()
    sequences = torch.repeat_interleave(
        torch.arange(len(lengths)) * 2, torch.tensor(lengths, dtype=torch.int64)
    )
    routing = router(Tokens(hidden, sequences))
    parts = [alone(Tokens(part)) for part in hidden.split(lengths)] if lengths else []
    expected = torch.cat([part.gates.to_dense() for part in parts]) if parts else torch.zeros(0, experts)
    assert torch.equal(routing.gates.to_dense(), expected)
    loads = torch.bincount(routing.gates.units, minlength=experts)
    assert loads.tolist() == [routing.capacity] * experts
    assert routing.gates.units.dtype == torch.int32


def test_gradients_reach_the_router() -> None:
    router = ExpertChoiceRouter(4, 3, per_sequence=True)
    router(Tokens(torch.randn(6, 4), torch.tensor([0, 0, 0, 0, 1, 1]))).gates.weights.sum().backward()
    assert router.gate.weight.grad.abs().sum() > 0


def test_sequences_must_be_given_and_scores_be_numbers() -> None:
    router = ExpertChoiceRouter(4, 3, per_sequence=True)
    with pytest.raises(UsageError, match=r"expert choice per sequence needs Tokens\.sequences"):
        router(Tokens(torch.randn(6, 4)))
    with pytest.raises(InputError, match="NaN"):
        router(Tokens(torch.full((2, 4), torch.nan), torch.tensor([0, 1])))
    with pytest.raises(UsageError, match="not ascending"):
        router(Tokens(torch.randn(4, 4), torch.tensor([0, 1, 0, 1])))
    with pytest.raises(UsageError, match=r"Tokens\.sequences is torch\.float32, but .* whole numbers"):
        router(Tokens(torch.randn(2, 4), torch.tensor([0.0, 0.5])))


@pytest.mark.parametrize("per_sequence", [True, False])
def test_the_token_whose_scores_are_nan_is_named(per_sequence: bool) -> None:
    hidden = torch.randn(5, 4)
    hidden[3] = torch.nan
    with pytest.raises(InputError, match="scores of token 3 are NaN"):
        ExpertChoiceRouter(4, 2, per_sequence=per_sequence)(Tokens(hidden, torch.zeros(5, dtype=torch.int64)))
