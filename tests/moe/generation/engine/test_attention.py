from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

import torch

from moe.generation.engine.attention import attend_chunk, attend_padded
from moe.generation.engine.single_rows import attend_single_rows

BLOCK = 4


def one_by_one(
    queries: Any, keys: Any, values: Any, scaling: float, window: int | None, softcap: float | None
) -> Any:
    """Attention of the last tokens of a sequence by the formula, token by token and head by head."""
    rows, heads, _ = queries.shape
    group = heads // keys.shape[1]
    output = torch.zeros(rows, heads, values.shape[2])
    for row in range(rows):
        end = len(keys) - rows + row + 1
        first = 0 if window is None else max(0, end - window)
        for head in range(heads):
            scores = keys[first:end, head // group] @ queries[row, head] * scaling
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            output[row, head] = scores.softmax(0) @ values[first:end, head // group]
    return output


lengths = st.lists(st.integers(1, 21), min_size=1, max_size=5)
windows = st.sampled_from([None, 1, 3, 8, 100])
softcaps = st.sampled_from([None, 2.0])
heads = st.sampled_from([(4, 4), (4, 2), (6, 1)])


@given(lengths=lengths, window=windows, softcap=softcaps, heads=heads, narrow=st.booleans())
def test_single_rows_attend_as_the_formula_says(
    lengths: list[int], window: int | None, softcap: float | None, heads: tuple[int, int], narrow: bool
) -> None:
    dtype = torch.bfloat16 if narrow else torch.float32
    generator = torch.Generator().manual_seed(sum(lengths))
    blocks = [-(-length // BLOCK) for length in lengths]
    order = np.random.default_rng(0).permutation(sum(blocks) + 2).astype(np.int32)
    tables = np.zeros((len(lengths), max(blocks)), np.int32)
    for row, count in enumerate(blocks):
        tables[row, :count] = order[:count]
        order = order[count:]
    slots = (sum(blocks) + 2) * BLOCK
    queries = (3 * torch.randn(len(lengths), heads[0], 8, generator=generator)).to(dtype)
    keys = torch.randn(slots, heads[1], 8, generator=generator).to(dtype)
    values = torch.randn(slots, heads[1], 12, generator=generator).to(dtype)
    given = (queries, keys, values, tables, np.array(lengths), BLOCK, 0.4, window, softcap)
    for attend in (attend_single_rows, attend_padded):
        found = attend(*given)
        assert found.dtype == dtype
        for row, length in enumerate(lengths):
            own = (tables[row, :, None] * BLOCK + np.arange(BLOCK)).reshape(-1)[:length]
            expected = one_by_one(
                queries[row : row + 1].float(), keys[own].float(), values[own].float(), 0.4, window, softcap
            )
            tolerance = 0.03 if narrow else 1e-5
            torch.testing.assert_close(found[row : row + 1].float(), expected, atol=tolerance, rtol=tolerance)


@given(rows=st.integers(1, 6), before=st.integers(0, 9), window=windows, softcap=softcaps, heads=heads)
def test_a_chunk_attends_as_the_formula_says(
    rows: int, before: int, window: int | None, softcap: float | None, heads: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(rows)
    queries = torch.randn(rows, heads[0], 8, generator=generator)
    keys = torch.randn(before + rows, heads[1], 8, generator=generator)
    values = torch.randn(before + rows, heads[1], 8, generator=generator)
    found = attend_chunk(queries, keys, values, 0.4, window, softcap)
    expected = one_by_one(queries, keys, values, 0.4, window, softcap)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_scores_far_apart_do_not_overflow() -> None:
    keys = torch.tensor([[[1000.0]], [[-1000.0]], [[0.0]], [[0.0]]])
    values = torch.tensor([[[1.0]], [[2.0]], [[3.0]], [[4.0]]])
    tables, lengths = np.zeros((1, 1), np.int32), np.array([4])
    found = attend_single_rows(torch.tensor([[[100.0]]]), keys, values, tables, lengths, 4, 1.0)
    assert found.item() == 1.0
