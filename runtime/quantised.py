"""Sparse activations with 8-bit weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.activations import Array, SparseActivations, is_tensor
from runtime.errors import InputError

SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
LARGEST_WEIGHT = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False, slots=True)
class QuantisedActivations:
    """A `SparseActivations` whose weights are ``scale · code``, one scale for the whole batch.

    One scale keeps integer scores of different rows comparable. Weights without a negative are uint8 codes
    with ``scale = max / 255``, others int8 codes with ``scale = max |w| / 127``; 0 is always exact. A small
    weight may get the code 0 and keeps its place.

    Attributes:
        indptr: int64 ``[num_rows + 1]``, shared with what was quantised.
        units: ``[nnz]``, shared with what was quantised.
        codes: uint8 or int8 ``[nnz]``.
        scale: positive.
        num_units: width of the dense matrix.
    """

    indptr: Array
    units: Array
    codes: Array
    scale: float
    num_units: int

    @property
    def num_rows(self) -> int:
        return len(self.indptr) - 1

    @property
    def nnz(self) -> int:
        return len(self.units)

    def __len__(self) -> int:
        return self.num_rows

    @property
    def error_bound(self) -> float:
        """No dequantised weight differs from its original by more: half a step, and float32's rounding."""
        return self.scale * (0.5 + 2.0**-14)

    def dequantise(self) -> SparseActivations:
        """float32 weights within `error_bound` of the originals."""
        codes: Any = self.codes
        weights = (codes.float() if is_tensor(codes) else codes.astype(np.float32)) * self.scale
        return SparseActivations(self.indptr, self.units, weights, self.num_units)


def quantise(activations: SparseActivations) -> QuantisedActivations:
    """Round the weights of a batch to 8 bits, halves to even.

    Raises:
        InputError: a weight is NaN, infinite, or beyond the range of float32, in which codes are read again.
    """
    weights: Any = activations.weights
    if is_tensor(weights):
        import torch

        library: Any = torch
        weights = weights.detach()
        weights = weights if weights.dtype == torch.float64 else weights.float()
    else:
        library = np
        weights = weights if weights.dtype == np.float64 else weights.astype(np.float32, copy=False)
    lowest, highest = (float(weights.min()), float(weights.max())) if len(weights) else (0.0, 0.0)
    if not max(-lowest, highest) <= LARGEST_WEIGHT:  # false for NaN as well
        raise InputError(
            f"weights from {lowest} to {highest} cannot be quantised; they must be finite and at most "
            f"{LARGEST_WEIGHT:.3g}, the largest float32"
        )
    largest, dtype = (255, library.uint8) if lowest >= 0 else (127, library.int8)
    scale = max(highest, -lowest) / largest
    if scale < SMALLEST_SCALE:
        # Below it float32 loses precision or underflows, and weights this small may as well be 0.
        scale = 1.0
    if scale * largest > LARGEST_WEIGHT or float(np.float32(scale)) * largest > LARGEST_WEIGHT:
        scale = float(
            np.nextafter(np.float32(scale), np.float32(0))
        )  # else the largest code would be infinite
    codes = (weights / scale).round().clip(-largest, largest)
    codes = codes.to(dtype) if is_tensor(codes) else codes.astype(dtype)
    return QuantisedActivations(activations.indptr, activations.units, codes, scale, activations.num_units)
