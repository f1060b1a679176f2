"""The fused head with gradients equals the plain formula, on both of its ways."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retrieval.training import training_head
from retrieval.training.training_head import max_pooled_terms, plain_max_terms


def gradients(
    way: str, hidden: torch.Tensor, lengths: list[int], weight: torch.Tensor, bias: torch.Tensor | None,
    activation: str, up: torch.Tensor,
) -> list[torch.Tensor]:  # fmt: skip
    """Term weights and the gradients of hidden states, weights and bias."""
    leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    offset = None if bias is None else bias.clone().requires_grad_()
    if way == "plain":
        longest = max([*lengths, 1])
        mask = torch.arange(longest) < torch.tensor(lengths).reshape(-1, 1)
        padded = torch.zeros(len(lengths), longest, hidden.shape[1]).masked_scatter(
            mask.unsqueeze(-1), leaves[0]
        )
        terms = plain_max_terms(padded, mask, leaves[1], offset, activation)
    else:
        terms = max_pooled_terms(leaves[0], lengths, leaves[1], offset, activation)
    (terms * up).sum().backward()
    found = [terms.detach(), *(leaf.grad for leaf in leaves)]
    return found if offset is None else [*found, offset.grad]


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    seed=st.integers(0, 99),
    terms=st.integers(1, 30),
    bias=st.sampled_from([None, "mixed", "negative"]),
    activation=st.sampled_from(["relu", "log1p_relu"]),
    tokens_per_tile=st.integers(1, 9),
    terms_per_tile=st.integers(1, 40),
    whole=st.booleans(),
    way=st.sampled_from(["cpu", "device"]),
)
def test_fused_head_equals_the_plain_formula_with_its_gradients(
    lengths: list[int], seed: int, terms: int, bias: str | None, activation: str, tokens_per_tile: int,
    terms_per_tile: int, whole: bool, way: str,
) -> None:  # fmt: skip
    draw = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    if whole:  # small whole numbers: sums are exact, and maxima tie
        hidden = torch.randint(-1, 2, (tokens, 4), generator=draw).float()
        weight = torch.randint(-1, 2, (terms, 4), generator=draw).float()
    else:
        hidden, weight = torch.randn(tokens, 4, generator=draw), torch.randn(terms, 4, generator=draw)
    offset = {
        None: None,
        "mixed": torch.randn(terms, generator=draw),
        "negative": torch.full((terms,), -99.0),
    }[bias]
    up = torch.randn(len(lengths), terms, generator=draw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_head, "TOKENS_PER_TILE", tokens_per_tile)
        patch.setattr(training_head, "TERMS_PER_TILE", terms_per_tile)
        patch.setattr(training_head, "DEVICE_LOGITS", tokens_per_tile * terms_per_tile)
        if way == "device":
            patch.setattr(training_head, "_maxima_on_cpu", training_head._maxima_on_device)
            patch.setattr(training_head, "_gradients_on_cpu", training_head._gradients_on_device)
        fused = gradients("fused", hidden, lengths, weight, offset, activation, up)
    plain = gradients("plain", hidden, lengths, weight, offset, activation, up)
    for found, expected in zip(fused, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if bias == "negative":
        assert not fused[0].any()
        assert not fused[1].any()


def test_threads_do_not_change_a_bit() -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(40, 16, generator=draw), torch.randn(90, 16, generator=draw)
    up = torch.randn(4, 90, generator=draw)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(gradients("fused", hidden, [10, 0, 25, 5], weight, None, "relu", up))
    finally:
        torch.set_num_threads(threads)
    for one, three in zip(*found, strict=True):
        assert torch.equal(one, three)


def test_a_logit_that_is_no_number_comes_out() -> None:
    hidden = torch.ones(3, 2)
    hidden[1, 0] = float("nan")
    assert max_pooled_terms(hidden, [3], torch.ones(5, 2), None, "relu").isnan().all()


def test_autocast_computes_in_bfloat16_with_gradients_in_float32() -> None:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(12, 8, generator=draw).requires_grad_()
    weight = torch.randn(20, 8, generator=draw).requires_grad_()
    exact = max_pooled_terms(hidden, [7, 5], weight, None, "relu")
    with torch.autocast("cpu", torch.bfloat16):
        rounded = max_pooled_terms(hidden, [7, 5], weight, None, "relu")
    rounded.sum().backward()
    assert rounded.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)
