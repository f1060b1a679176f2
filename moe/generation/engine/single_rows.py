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
    output = np.zeros((*queries.shape[:2], values.shape[-1]), np.float32)
    # bfloat16 is the upper half of float32, which NumPy sees as a whole number.
    stored = [(kept.view(torch.int16) if narrow else kept).numpy().reshape(-1) for kept in (keys, values)]
    _attend(
        np.ascontiguousarray(queries.float().numpy()).reshape(-1),
        *stored,
        (queries.shape[1], *keys.shape[1:], values.shape[-1]),
        tables,
        lengths,
        block_tokens,
        np.float32(scaling),
        int(lengths.max(initial=1)) if sliding_window is None else sliding_window,
        np.float32(softcap or 0),
        output.reshape(-1),
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


# Whole numbers without a sign: for others Numba asks at each element whether it counts from the end, and then the
# loops are not done in vectors.


@njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
def _dot(queries: Any, query: Any, keys: Any, key: Any, width: Any) -> Any:
    """In any order, so that it is done in vectors. The rest of this module keeps its order: `_exp` has to."""
    query, key = np.uint64(query), np.uint64(key)
    total = np.float32(0)
    for column in range(np.uint64(width)):
        total += queries[query + column] * _float32(keys[key + column])
    return total


@njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _add(sums: Any, at: Any, share: Any, values: Any, value: Any, width: Any) -> None:
    at, value = np.uint64(at), np.uint64(value)
    for column in range(np.uint64(width)):
        sums[at + column] += share * _float32(values[value + column])


@njit(nogil=True, error_model="numpy")
def _softmax(scores: Any) -> None:
    highest = scores[0]
    for place in range(len(scores)):
        highest = max(highest, scores[place])
    for place in range(len(scores)):
        scores[place] = _exp(scores[place] - highest)
    total = np.float32(0)
    for place in range(len(scores)):
        total += scores[place]
    for place in range(len(scores)):
        scores[place] /= total


@njit(nogil=True, error_model="numpy", cache=True)
def _compiled(
    queries: Any,
    keys: Any,
    values: Any,
    sizes: Any,
    tables: Any,
    lengths: Any,
    block_tokens: int,
    scaling: Any,
    window: int,
    softcap: Any,
    output: Any,
) -> None:
    # All arrays of numbers are flat: a view of a part costs as much as the product of two heads.
    heads, key_heads, width, value_width = sizes
    group = heads // key_heads
    most = min(window, lengths.max())
    scores = np.empty(group * most, np.float32)
    slots = np.empty(most, np.int64)
    for row in range(len(lengths)):
        first = max(0, lengths[row] - window)
        count = lengths[row] - first
        for place in range(count):
            at = first + place
            slots[place] = tables[row, at // block_tokens] * block_tokens + at % block_tokens
        for key_head in range(key_heads):
            head = row * heads + key_head * group
            for place in range(count):
                key = (slots[place] * key_heads + key_head) * width
                for member in range(group):
                    score = _dot(queries, (head + member) * width, keys, key, width) * scaling
                    if softcap > 0:
                        score = np.float32(math.tanh(score / softcap)) * softcap
                    scores[member * most + place] = score
            for member in range(group):
                _softmax(scores[member * most : member * most + count])
            for place in range(count):
                value = (slots[place] * key_heads + key_head) * value_width
                for member in range(group):
                    share = scores[member * most + place]
                    _add(output, (head + member) * value_width, share, values, value, value_width)


_attend: Any = _compiled
"""Untyped, because Numba says of compiled functions that they take nothing."""
