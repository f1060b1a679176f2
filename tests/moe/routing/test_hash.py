from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe.routing.hash import HashRouter
from moe.routing.router import Tokens
from runtime.errors import UsageError


def experts_of(router: HashRouter, hidden: torch.Tensor, ids: torch.Tensor) -> list[int]:
    units: list[int] = router(Tokens(hidden, ids=ids)).gates.units.tolist()
    return units


def test_the_expert_is_that_of_the_id_whatever_the_hidden_state() -> None:
    router = HashRouter(4, 3, vocabulary_size=11)
    ids = torch.randint(11, (40,))
    seen = experts_of(router, torch.randn(40, 4), ids)
    assert seen == experts_of(router, 9 * torch.randn(40, 4), ids) == router.table[ids].tolist()
    assert router(Tokens(torch.randn(40, 4), ids=ids)).gates.weights.tolist() == [1.0] * 40


def test_the_table_does_not_depend_on_weights_random_state_or_device_context() -> None:
    assert not list(HashRouter(4, 3, vocabulary_size=50).parameters())
    first = HashRouter(4, 3, vocabulary_size=50).table
    torch.manual_seed(123)
    with torch.device("meta"):
        second = HashRouter(4, 3, vocabulary_size=50).table
    assert first.tolist() == second.tolist()
    assert first.tolist() != HashRouter(4, 3, vocabulary_size=50, seed=1).table.tolist()


@given(size=st.integers(1, 60), experts=st.integers(1, 7), seed=st.integers(0, 3))
def test_experts_have_equally_many_ids(size: int, experts: int, seed: int) -> None:
    load = torch.bincount(HashRouter(4, experts, vocabulary_size=size, seed=seed).table, minlength=experts)
    assert load.max() - load.min() <= 1


@given(
    frequencies=st.lists(st.integers(0, 1000), min_size=1, max_size=60),
    experts=st.integers(1, 7),
)
def test_with_frequencies_each_id_goes_to_the_expert_with_the_least_text(
    frequencies: list[int], experts: int
) -> None:
    router = HashRouter(4, experts, vocabulary_size=len(frequencies), frequencies=frequencies)
    text = np.bincount(router.table.numpy(), weights=frequencies, minlength=experts)
    # The fullest expert was the emptiest before its last id, so it leads by at most one id.
    assert text.max() - text.min() <= max(frequencies)


def test_frequencies_even_out_text_and_not_ids() -> None:
    frequencies: Any = [100.0, 1.0, 1.0, 1.0, 1.0, 96.0]
    router = HashRouter(4, 2, vocabulary_size=6, frequencies=frequencies)
    assert np.bincount(router.table.numpy(), weights=frequencies).tolist() == [100, 100]


def test_load_balance_is_one_when_the_text_is_even() -> None:
    router = HashRouter(4, 3, vocabulary_size=9)
    losses = router(Tokens(torch.randn(9, 4), ids=torch.arange(9))).losses
    assert losses["load_balance"].item() == pytest.approx(1.0)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True])
def test_seeds_are_those_of_all_commands(seed: Any) -> None:
    with pytest.raises(UsageError, match="must be a whole number from 0 to 4294967295"):
        HashRouter(4, 3, vocabulary_size=50, seed=seed)
    assert HashRouter(4, 3, vocabulary_size=50, seed=2**32 - 1).num_experts == 3
