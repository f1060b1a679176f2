"""The fused vocabulary head equals the plain formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.encoders import vocabulary_head
from retrieval.encoders.vocabulary_head import plain_pooled_terms, pooled_terms

LENGTHS = st.lists(st.integers(0, 12), max_size=6)


def both(
    lengths: list[int], seed: int, terms: int, bias: bool, pooling: str, activation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows, longest = len(lengths), max([*lengths, 1])
    padded = torch.randn(rows, longest, 8, generator=generator)
    mask = torch.arange(longest) < torch.tensor(lengths, dtype=torch.int64).reshape(-1, 1)
    weight = torch.randn(terms, 8, generator=generator)
    offset = torch.randn(terms, generator=generator) if bias else None
    plain = torch.nn.functional.linear(padded, weight, offset)
    return (
        pooled_terms(padded[mask], lengths, weight, offset, pooling, activation),
        plain_pooled_terms(plain, mask, pooling, activation),
    )


@settings(derandomize=True, deadline=None, max_examples=80)
@given(
    lengths=LENGTHS,
    seed=st.integers(0, 9),
    terms=st.integers(1, 30),
    bias=st.booleans(),
    pooling=st.sampled_from(["max", "sum"]),
    activation=st.sampled_from(["relu", "log1p_relu"]),
    tokens_per_tile=st.integers(1, 9),
    terms_per_tile=st.integers(1, 40),
)
def test_fused_head_equals_the_plain_formula(
    lengths: list[int],
    seed: int,
    terms: int,
    bias: bool,
    pooling: str,
    activation: str,
    tokens_per_tile: int,
    terms_per_tile: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary_head, "TOKENS_PER_TILE", tokens_per_tile)
        patch.setattr(vocabulary_head, "TERMS_PER_TILE", terms_per_tile)
        fused, plain = both(lengths, seed, terms, bias, pooling, activation)
    assert fused.shape == plain.shape
    assert fused.dtype == torch.float32
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["max", "sum"])
def test_fused_head_equals_the_plain_formula_at_the_size_of_bert(pooling: str) -> None:
    generator = torch.Generator().manual_seed(1)
    lengths = [700, 3, 128]
    hidden = torch.randn(sum(lengths), 64, generator=generator)
    weight = torch.randn(30522, 64, generator=generator) * 0.1
    bias = torch.randn(30522, generator=generator)
    fused = pooled_terms(hidden, lengths, weight, bias, pooling, "relu")
    for row, part in enumerate(hidden.split(lengths)):
        logits = torch.nn.functional.linear(part, weight, bias)[None]
        plain = plain_pooled_terms(logits, torch.ones(1, len(part)), pooling, "relu")
        torch.testing.assert_close(fused[row], plain[0], rtol=1e-5, atol=1e-5)


def test_a_row_without_tokens_weighs_nothing() -> None:
    for pooling in ("max", "sum"):
        fused, _ = both([0, 2, 0], 0, 7, True, pooling, "relu")
        assert fused[0].eq(0).all()
        assert fused[2].eq(0).all()


def test_bfloat16_inputs_give_float32_weights_close_to_float32_ones() -> None:
    hidden, weight = torch.randn(9, 8), torch.randn(20, 8)
    for pooling in ("max", "sum"):
        exact = pooled_terms(hidden, [4, 5], weight, None, pooling, "relu")
        rough = pooled_terms(hidden.bfloat16(), [4, 5], weight.bfloat16(), None, pooling, "relu")
        assert rough.dtype == torch.float32
        torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.1)
