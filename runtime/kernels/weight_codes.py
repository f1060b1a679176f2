"""Rounds weights to few bits: the search for scales, and the packing of nibbles, compiled by Numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from runtime.kernels.reference import Numbers

SHRINKS = np.append(np.linspace(1.1, 0.55, 23), [1.0, 8 / 7]).astype(np.float32)
"""Steps that are tried, as a share of the one at which the largest weight just gets the outermost code."""


def round_to_codes(weights: Numbers, *, lowest: int, highest: int) -> tuple[NDArray[np.int8], Numbers]:
    """Codes and one scale for each row, chosen so that ``Σ (w - scale · code)²`` is small.

    Clipping the few largest weights makes the steps between the many smaller. The scale has the sign that gives the
    outermost code, of which the lowest may lie further out, to the largest weight. It is a bfloat16 number, so that it
    can be kept as one.

    Args:
        weights: float32 ``[rows, columns]``.
        lowest, highest: range of the codes, within int8.

    Returns:
        int8 ``[rows, columns]`` and float32 ``[rows]``.
    """
    codes, scales = np.zeros(weights.shape, np.int8), np.zeros(len(weights), np.float32)
    _round_rows(weights, lowest, highest, SHRINKS, codes, scales)
    return codes, scales


def pack_nibbles(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """int8 ``[rows, columns]`` in ``[-8, 7]`` to uint8 ``[rows, columns / 2]``; see `QuantisedWeights`."""
    blocks = (codes + 8).astype(np.uint8).reshape(len(codes), -1, 2, 32)
    packed = (blocks[:, :, 0] | blocks[:, :, 1] << 4).reshape(len(codes), -1)
    return packed.astype(np.uint8, copy=False)


@njit(nogil=True, cache=True, fastmath={"contract", "nsz", "reassoc"})
def _round_rows(
    weights: Numbers, lowest: int, highest: int, shrinks: Numbers, codes: Numbers, scales: Numbers
) -> None:
    low, high = np.float32(lowest), np.float32(highest)
    columns = weights.shape[1]
    for row in range(len(weights)):
        largest = np.float32(0)
        for column in range(columns):
            if abs(weights[row, column]) > abs(largest):
                largest = weights[row, column]
        if largest == 0:
            continue
        least = np.float32(np.inf)
        for shrink in shrinks:
            scale = _to_bfloat16(largest / low * shrink)
            if scale == 0:
                continue
            inverse = np.float32(1) / scale
            error, product, square = np.float32(0), np.float32(0), np.float32(0)
            for column in range(columns):
                weight = weights[row, column]
                code = min(max(np.rint(weight * inverse), low), high)
                error += (weight - scale * code) ** 2
                product += weight * code
                square += code * code
            if error < least:
                least, scales[row] = error, scale
            if square > 0:
                # For these codes, the best scale is the projection.
                fitted = _to_bfloat16(product / square)
                if fitted != 0:
                    again = np.float32(0)
                    inverse = np.float32(1) / fitted
                    for column in range(columns):
                        weight = weights[row, column]
                        code = min(max(np.rint(weight * inverse), low), high)
                        again += (weight - fitted * code) ** 2
                    if again < least:
                        least, scales[row] = again, fitted
        if scales[row] != 0:
            inverse = np.float32(1) / scales[row]
            for column in range(columns):
                codes[row, column] = np.int8(min(max(np.rint(weights[row, column] * inverse), low), high))


@njit(nogil=True, cache=True)
def _to_bfloat16(number: Any) -> Any:
    """Rounded to the nearest number of 8 significant bits, away from zero in the middle."""
    bits = np.float32(number).view(np.uint32)
    return np.uint32((bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)
