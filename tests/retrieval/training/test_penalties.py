"""Penalties are those of the formulas, and the same for any number of processes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retrieval.training.penalties import make_penalty
from runtime import regularizers
from runtime.errors import UsageError

TERMS = 7


@given(rows=st.integers(0, 5), seed=st.integers(0, 50))
def test_penalties_equal_the_formulas(rows: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    weights, idf = torch.rand(rows, TERMS, generator=draw), torch.rand(TERMS, generator=draw) + 0.1
    for kind, expected in (
        ("flops", regularizers.flops(weights)),
        ("l1", regularizers.l1(weights)),
        ("idf_flops", regularizers.idf_flops(weights, idf)),
    ):
        found = make_penalty(kind, idf if kind == "idf_flops" else None)(weights)
        torch.testing.assert_close(found, expected)


def test_rows_of_few_terms_are_free() -> None:
    weights = torch.tensor([[1.0, 0, 0], [2.0, 2, 0], [3.0, 3, 3]], requires_grad=True)
    penalty = make_penalty("flops", free_terms=2)(weights)
    assert penalty.item() == 3.0  # (3 / 3)² for each of three terms
    penalty.backward()
    assert not weights.grad[:2].any()
    assert weights.grad[2].all()


def test_idf_must_be_given_and_positive() -> None:
    with pytest.raises(UsageError, match="needs the idf"):
        make_penalty("idf_flops")
    with pytest.raises(UsageError, match="positive"):
        make_penalty("idf_flops", torch.tensor([1.0, 0.0]))
