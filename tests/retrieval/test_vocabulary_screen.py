"""The screen of a vocabulary misses no term, and leaves few."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.encoders.vocabulary_head import pooled_terms
from retrieval.encoders.vocabulary_screen import VocabularyScreen
from runtime.kernels.byte_maxima import (
    COLUMNS,
    LANES,
    TERM_LIMIT,
    TOKEN_LIMIT,
    packed_terms,
    raise_maxima,
)

LOWEST = np.iinfo(np.int32).min


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=5),
    terms=st.integers(1, 30),
    steps=st.integers(1, 5),
    seed=st.integers(0, 99),
    extreme=st.booleans(),
)
def test_maxima_of_bytes_equal_those_of_whole_numbers(
    lengths: list[int], terms: int, steps: int, seed: int, extreme: bool
) -> None:
    draw = np.random.default_rng(seed)
    columns = COLUMNS * steps
    tokens = draw.integers(0, TOKEN_LIMIT + 1, (sum(lengths), columns)).astype(np.uint8)
    codes = draw.integers(-TERM_LIMIT, TERM_LIMIT + 1, (terms, columns)).astype(np.int8)
    if extreme:  # the largest sums that int16 has to take
        tokens[:] = TOKEN_LIMIT
        codes[:] = np.where(np.arange(terms) % 2, TERM_LIMIT, -TERM_LIMIT)[:, None]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    panels = packed_terms(codes)
    maxima = np.full((len(lengths), len(panels) * LANES), LOWEST, np.int32)
    middle = len(panels) // 2
    raise_maxima(tokens, starts, panels, maxima, 0, middle)
    raise_maxima(tokens, starts, panels, maxima, middle, len(panels))
    products = tokens.astype(np.int64) @ codes.astype(np.int64).T
    for row, (begin, end) in enumerate(pairwise(starts)):
        expected = products[begin:end].max(axis=0, initial=LOWEST)
        np.testing.assert_array_equal(maxima[row, :terms], expected)


@settings(derandomize=True, deadline=None, max_examples=80)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    seed=st.integers(0, 99),
    terms=st.integers(1, 200),
    width=st.sampled_from([1, 8, 24, 40]),
    bias=st.sampled_from([None, 0.0, -3.0]),
    outliers=st.booleans(),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 1e3]),
    centred=st.booleans(),
)
def test_every_term_with_a_weight_is_left(
    lengths: list[int],
    seed: int,
    terms: int,
    width: int,
    bias: float | None,
    outliers: bool,
    scale: float,
    centred: bool,
) -> None:
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(sum(lengths), width, generator=draw) * scale
    weight = torch.randn(terms, width, generator=draw)
    if outliers:
        hidden[:, :1] *= 50
        weight[:, -1:] *= 50
    weight[::7] = 0
    offset = None if bias is None else torch.full((terms,), bias)
    centre = hidden.mean(dim=0) if centred and len(hidden) else torch.zeros(width)
    found = VocabularyScreen(weight, offset, centre).candidates(hidden, lengths)
    dense = pooled_terms(hidden, lengths, weight, offset, "max", "relu")
    assert len(found) == len(lengths)
    for row, left in enumerate(found):
        assert (np.diff(left) > 0).all()
        missed = dense[row].clone()
        missed[torch.from_numpy(left)] = 0
        assert not missed.any()


def test_a_logit_just_above_zero_is_left_where_rounding_decides() -> None:
    weight = torch.randn(500, 32, generator=torch.Generator().manual_seed(0))
    hidden = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
    # the bias takes back what the largest logit of each term is, but for float32's last digits
    bias = -(hidden @ weight.T).amax(dim=0)
    (left,) = VocabularyScreen(weight, bias, hidden.mean(dim=0)).candidates(hidden, [6])
    assert len(left) == 500


@pytest.mark.parametrize("threads", [1, 2])
def test_most_terms_that_weigh_nothing_are_ruled_out(threads: int) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(60, 64, generator=draw), torch.randn(3000, 64, generator=draw) / 8
    hidden[:, 3] *= 4  # as layer norms make some columns
    bias = torch.full((3000,), -5.0)
    kept = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = VocabularyScreen(weight, bias, hidden.mean(dim=0)).candidates(hidden, [20, 40])
    finally:
        torch.set_num_threads(kept)
    dense = pooled_terms(hidden, [20, 40], weight, bias, "max", "relu")
    for row, left in enumerate(found):
        assert 0 < (dense[row] > 0).sum() <= len(left) < 1000
