"""Attention of one new token of each of several sequences, on the processor.

To torch, sequences of different lengths in blocks are a gather of all their keys and values before each product.
Here each key and value is read where it is, once for all heads that it serves.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload
from torch import Tensor

LOG2_E = np.float32(1.44269504)
LN2_HIGH = np.float32(0.693359375)
LN2_LOW = np.float32(-2.12194440e-4)
ROUNDER = np.float32(1.5 * 2**23)
"""Added to a number of few bits, it leaves the nearest whole number in the lowest bits."""
LOWEST = np.float32(-87.3)
"""What is below has no normal exponential in float32."""
TERMS = tuple(np.float32(1 / math.factorial(power)) for power in range(7, 1, -1))
ONE = np.float32(1)


def attend_single_rows(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Any,
    lengths: Any,
    block_tokens: int,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Softmax attention in float32.

    Args:
        queries: float32 or bfloat16 ``[rows, heads, width]``, of the last token of each sequence.
        keys: ``[slots, key heads, width]``, of the dtype of `queries`.
        values: ``[slots, key heads, value width]``.
        tables: int32 ``[rows, blocks]``, the blocks of each sequence.
        lengths: int64 ``[rows]``, its tokens, at least 1.
        block_tokens: slots of a block.
        scaling: of products of queries and keys.
        sliding_window: only so many of the last keys are seen.
        softcap: scores s become softcap · tanh(s / softcap).

    Returns:
        ``[rows, heads, value width]`` of the dtype of `queries`.
    """
    narrow = keys.dtype == torch.bfloat16
    output = np.empty((*queries.shape[:2], values.shape[-1]), np.float32)
    # bfloat16 is the upper half of float32, which NumPy sees as a whole number.
    stored = [(kept.view(torch.int16) if narrow else kept).numpy() for kept in (keys, values)]
    _attend(
        np.ascontiguousarray(queries.float().numpy()),
        *stored,
        tables,
        lengths,
        block_tokens,
        np.float32(scaling),
        lengths.max(initial=1) if sliding_window is None else sliding_window,
        np.float32(softcap or 0),
        output,
    )
    return torch.from_numpy(output).to(queries.dtype)


def _float32(number: Any) -> Any:
    """A stored number, of which an int16 is the upper half."""
    raise NotImplementedError  # compiled below


@overload(_float32)
def _compiled_float32(number):  # type: ignore[no-untyped-def]
    if not isinstance(number, types.Integer):
        return lambda number: number

    def widen(number):  # type: ignore[no-untyped-def]
        return np.uint32(np.uint32(np.uint16(number)) << np.uint32(16)).view(np.float32)

    return widen


@njit(nogil=True, error_model="numpy")
def _exp(x: Any) -> Any:
    """float32 of a number that is not above 0; NaN stays."""
    inside = x if x > LOWEST else LOWEST
    turned = inside * LOG2_E + ROUNDER
    whole = turned - ROUNDER
    rest = inside - whole * LN2_HIGH - whole * LN2_LOW
    power = TERMS[0]
    power = power * rest + TERMS[1]
    power = power * rest + TERMS[2]
    power = power * rest + TERMS[3]
    power = power * rest + TERMS[4]
    power = power * rest + TERMS[5]
    power = np.float32(power * rest * rest + rest + ONE)
    turns = np.float32(turned).view(np.uint32) << np.uint32(23)
    result = np.uint32(np.float32(power).view(np.uint32) + turns).view(np.float32)
    return result if x == x else x


@njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
def _dot(query: Any, key: Any) -> Any:
    """In any order, so that it is done in vectors. The rest of this module keeps its order: `_exp` has to."""
    total = np.float32(0)
    for column in range(len(query)):
        total += query[column] * _float32(key[column])
    return total


@njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _add(sums: Any, share: Any, value: Any) -> None:
    for column in range(len(sums)):
        sums[column] += share * _float32(value[column])


@njit(nogil=True, error_model="numpy", cache=True)
def _compiled(
    queries: Any,
    keys: Any,
    values: Any,
    tables: Any,
    lengths: Any,
    block_tokens: int,
    scaling: Any,
    window: int,
    softcap: Any,
    output: Any,
) -> None:
    rows, heads, _ = queries.shape
    key_heads = keys.shape[1]
    group = heads // key_heads
    scores = np.empty((group, min(window, lengths.max())), np.float32)
    for row in range(rows):
        first = max(0, lengths[row] - window)
        count = lengths[row] - first
        for key_head in range(key_heads):
            for place in range(count):
                at = first + place
                slot = tables[row, at // block_tokens] * block_tokens + at % block_tokens
                known = keys[slot, key_head]
                for member in range(group):
                    query = queries[row, key_head * group + member]
                    score = _dot(query, known) * scaling
                    if softcap > 0:
                        score = np.float32(math.tanh(score / softcap)) * softcap
                    scores[member, place] = score
            for member in range(group):
                shares = scores[member, :count]
                highest = shares.max()
                total = np.float32(0)
                for place in range(count):
                    shares[place] = _exp(shares[place] - highest)
                    total += shares[place]
                output[row, key_head * group + member] = 0
                for place in range(count):
                    shares[place] /= total
            for place in range(count):
                at = first + place
                slot = tables[row, at // block_tokens] * block_tokens + at % block_tokens
                added = values[slot, key_head]
                for member in range(group):
                    _add(output[row, key_head * group + member], scores[member, place], added)


_attend: Any = _compiled
"""Untyped, because Numba says of compiled functions that they take nothing."""
