"""Weights of experts in 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.errors import InputError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

BITS = (4, 8)
GROUPS = (32, 128)
DEFAULT_GROUP = 128
BLOCK = 64
"""Columns that are packed together in 4 bits; columns are padded with zeros up to whole blocks."""


@dataclass(frozen=True, eq=False, slots=True)
class QuantisedWeights:
    """The matrices of all experts, ``[experts, rows, columns]``, as ``scale · code``.

    8 bits have one scale for each row. 4 bits have one for each `group` columns, and two codes in a byte, each stored 8
    too high: in a block of 64 columns, byte `i` of 32 holds column `i` in its lower half and column ``32 + i`` in its
    upper one. A half of all bytes is then 32 neighbouring weights.

    Attributes:
        codes: int8 ``[experts, rows, padded]``, or uint8 ``[experts, rows, padded / 2]``. `padded` is the columns
            rounded up to a multiple of 16 (8 bits), of 64 (groups of 32) or of 128.
        scales: float32 ``[experts, rows]``, or bfloat16 ``[experts, rows, padded / group]``; may be negative.
        columns: how many there are without padding.
        bits: 8 or 4.
        group: columns that share a scale; 0 for whole rows.
    """

    codes: Tensor
    scales: Tensor
    columns: int
    bits: int
    group: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.codes.shape[0], self.codes.shape[1], self.columns

    @property
    def padded(self) -> int:
        """Columns with padding."""
        return self.codes.shape[2] * (2 if self.bits == 4 else 1)

    @property
    def num_bytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def __len__(self) -> int:
        return len(self.codes)

    def dequantise(self) -> Tensor:
        """float32 ``[experts, rows, columns]``: what the codes stand for, exactly."""
        import torch

        if self.bits == 8:
            return (self.codes.float() * self.scales[:, :, None])[:, :, : self.columns]
        experts, rows, _ = self.codes.shape
        halves = self.codes.reshape(experts, rows, -1, 1, 32)
        codes = torch.cat([halves & 15, halves >> 4], dim=3).short() - 8
        groups = codes.reshape(experts, rows, -1, self.group).float() * self.scales.float()[..., None]
        return groups.reshape(experts, rows, -1)[:, :, : self.columns]


def quantise_experts(
    matrices: Iterable[Tensor], *, bits: int = 4, group: int = DEFAULT_GROUP
) -> QuantisedWeights:
    """Quantise one matrix after the other, each with the scales that make its squared error small.

    Args:
        matrices: floating ``[rows, columns]`` of each expert, all of one shape; a tensor ``[experts, rows, columns]``,
            or a generator that reads them when they are asked for: no more than one is held in float32.
        bits: 8 or 4.
        group: with 4 bits, the columns that share a scale: 32 or 128.

    Raises:
        UsageError: there is no matrix, their shapes differ, or `bits` or `group` are others.
        InputError: a weight is NaN or infinite in float32, or so large that what it is rounded to may be infinite.
    """
    import torch

    from runtime.kernels.weight_codes import pack_nibbles

    if bits not in BITS or group not in GROUPS:
        raise UsageError(
            f"weights have 4 or 8 bits in groups of 32 or 128, not {bits} bits in groups of {group}"
        )
    codes: list[Tensor] = []
    scales: list[Tensor] = []
    shape = None
    for matrix in matrices:
        if matrix.ndim != 2 or (shape is not None and matrix.shape != shape):
            raise UsageError(
                f"experts' matrices must be [rows, columns] of one shape, but {tuple(matrix.shape)} follows {shape}"
            )
        shape = matrix.shape
        _check_finite(matrix, len(codes))
        unit = 16 if bits == 8 else max(group, BLOCK)
        padding = -shape[1] % unit
        padded = torch.nn.functional.pad(matrix.detach().float().cpu(), (0, padding)).contiguous()
        if bits == 8:
            found, scale = _rounded(padded.numpy(), -127, 127)
            codes.append(torch.from_numpy(found))
            scales.append(torch.from_numpy(scale))
        else:
            found, scale = _rounded(padded.reshape(-1, group).numpy(), -8, 7)
            codes.append(torch.from_numpy(pack_nibbles(found.reshape(len(padded), -1))))
            scales.append(torch.from_numpy(scale).bfloat16().reshape(len(padded), -1))
    if shape is None:
        raise UsageError("there is no expert to quantise; give at least one matrix")
    return QuantisedWeights(
        torch.stack(codes), torch.stack(scales), shape[1], bits, 0 if bits == 8 else group
    )


def _rounded(weights: NDArray[Any], lowest: int, highest: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """`round_to_codes`, whatever the size of the weights.

    The squares that it compares would be infinite above 1e19, and 0 below 1e-23. Powers of two are taken out of each
    row before and put into its scale again, which changes no digit of others. A row whose scale float32 has not with
    all of its digits, of weights below 1e-36, becomes zeros.
    """
    import numpy as np

    from runtime.kernels.weight_codes import round_to_codes

    _, exponents = np.frexp(np.abs(weights).max(1, initial=0.0))
    codes, scales = round_to_codes(
        np.ldexp(weights, -exponents[:, None]).astype(np.float32, copy=False), lowest=lowest, highest=highest
    )
    scales = np.ldexp(scales, exponents).astype(np.float32, copy=False)
    too_small = np.abs(scales) < np.finfo(np.float32).tiny
    scales[too_small], codes[too_small] = 0.0, 0
    return codes, scales


MOST = 2.0**126
"""The rounding of a weight may be a little larger than the weight, and must be finite."""


def _check_finite(matrix: Tensor, expert: int) -> None:
    values = matrix.detach().float()
    if bool((values.abs() > MOST).any()) and bool(values.isfinite().all()):
        raise InputError(
            f"weights of expert {expert} are as large as {float(values.abs().max()):.3g}, but can be {MOST:.3g} at "
            "most to be rounded; look where the checkpoint was damaged, or where its training diverged"
        )
    wrong = ~values.isfinite()
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        raise InputError(
            f"weights of expert {expert} are not finite in {int(wrong.sum())} places, first in row {row}, column "
            f"{column}; no scale fits them: look where the checkpoint was damaged, or where its training diverged"
        )
