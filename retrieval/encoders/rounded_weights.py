"""Weights of a model in a quarter or an eighth of their bytes: matrices as whole numbers with a scale for each row.

``rounded.safetensors`` takes the place of ``model.safetensors`` in a model folder. A matrix ``NAME`` stands for
``scales[:, None] · codes`` and is kept in one of two forms:

- 8 bits: ``NAME.codes`` int8 ``[rows, columns]`` and ``NAME.scales`` float32 ``[rows]``.
- 4 bits: ``NAME.nibbles`` uint8 ``[rows, columns / 2]``, rounded up, with codes from -7 to 7, stored 8 too high: an
  even column in the lower half of a byte, the next in the upper one; ``NAME.scales`` float16 ``[rows]``; and
  ``NAME.columns`` int32 ``[]``. With so few steps it is often better to cut a row's largest values a little: of several
  scales, the one with the least squared error is taken.

Everything else is kept in float16. It is a form on disk alone: a model computes with the float32 weights that it stands
for. Version and checksum are those of `checked_tensors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from retrieval.encoders.checked_tensors import load_checked, save_checked
from runtime.errors import FormatError, UsageError

VERSION = "2"
FORM = "rounded"
LARGEST_BYTE, LARGEST_NIBBLE = 127, 7
CUTS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
"""What a row's largest magnitude is multiplied by for the scales that are tried in 4 bits."""

CODES, NIBBLES, SCALES, COLUMNS = ".codes", ".nibbles", ".scales", ".columns"

Bits = Literal[8, 4]

ALL_EIGHT: Mapping[str, Bits] = MappingProxyType({})


def round_to_bytes(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 ``[rows, columns]`` and scales float32 ``[rows]``; each value is off by half a scale at most.

    Args:
        matrix: float32 ``[rows, columns]``, finite.
    """
    scales = _largest(matrix) / LARGEST_BYTE
    return _codes(matrix, scales, LARGEST_BYTE), scales


def round_to_nibbles(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 ``[rows, columns]`` from -7 to 7 and scales float16 ``[rows]``, of the least squared error in `CUTS`.

    Args:
        matrix: float32 ``[rows, columns]``, finite; scales of values above 458,000 are infinite.
    """
    largest = _largest(matrix) / LARGEST_NIBBLE
    best_scales = torch.zeros(len(matrix), dtype=torch.float16)
    best_codes = torch.zeros(matrix.shape, dtype=torch.int8)
    least = torch.full((len(matrix),), torch.inf)
    for cut in CUTS:
        scales = (largest * cut).half()
        codes = _codes(matrix, scales.float(), LARGEST_NIBBLE)
        error = (codes * scales.float()[:, None] - matrix).square().sum(1)
        better = (error < least) | (least == torch.inf)
        best_scales[better], best_codes[better], least[better] = scales[better], codes[better], error[better]
    return best_codes, best_scales


def _largest(matrix: Tensor) -> Tensor:
    return matrix.abs().amax(1).float() if matrix.shape[1] else torch.zeros(len(matrix))


def _codes(matrix: Tensor, scales: Tensor, largest: int) -> Tensor:
    divisors = torch.where(scales > 0, scales, 1.0)
    return (matrix.float() / divisors[:, None]).round().clamp(-largest, largest).to(torch.int8)


def rounded(weights: Mapping[str, Tensor], bits: Mapping[str, Bits] = ALL_EIGHT) -> dict[str, Tensor]:
    """The tensors that stand for `weights`; see above.

    Args:
        bits: of matrices, by their names; all others have 8.

    Raises:
        UsageError: a weight is NaN or infinite, or too large for float16.
    """
    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        kept = weight.detach().cpu()
        if not kept.dtype.is_floating_point:
            tensors[name] = kept.contiguous()
            continue
        if kept.ndim != 2:
            tensors[name] = last = kept.to(torch.float16).contiguous()
        elif bits.get(name, 8) == 8:
            tensors[name + CODES], last = round_to_bytes(kept)
            tensors[name + SCALES] = last
        else:
            codes, last = round_to_nibbles(kept.float())
            tensors[name + NIBBLES], tensors[name + SCALES] = _packed(codes), last
            tensors[name + COLUMNS] = torch.tensor(kept.shape[1], dtype=torch.int32)
        if not bool(torch.isfinite(kept).all()) or not bool(torch.isfinite(last).all()):
            raise UsageError(
                f"the weight {name} has values that 16 bits and fewer cannot hold; keep it in float32"
            )
    return tensors


def restored(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The weights that `rounded` made `tensors` of, as far as those know them: float32, under their names.

    Args:
        path: of the file that they come from, for what is wrong with them.

    Raises:
        FormatError: a part of a matrix is missing or has another shape.
    """
    weights = {}
    for name, tensor in tensors.items():
        whole, dot, part = name.rpartition(".")
        if dot + part in (SCALES, COLUMNS):
            continue
        try:
            if dot + part == CODES:
                weights[whole] = tensor.float() * tensors[whole + SCALES][:, None]
            elif dot + part == NIBBLES:
                codes = _unpacked(tensor, int(tensors[whole + COLUMNS]))
                weights[whole] = codes.float() * tensors[whole + SCALES].float()[:, None]
            else:
                weights[name] = tensor.float() if tensor.dtype.is_floating_point else tensor
        except (KeyError, RuntimeError, IndexError, ValueError):
            raise FormatError(f"{path} has no whole matrix {whole}; save the model again") from None
    return weights


def save_rounded(weights: Mapping[str, Tensor], path: Path, bits: Mapping[str, Bits] = ALL_EIGHT) -> None:
    """Write `weights` in this form to `path`, which appears when it is whole.

    Raises:
        UsageError: as `rounded`.
    """
    save_checked(rounded(weights, bits), path, FORM, VERSION)


def load_rounded(path: Path) -> dict[str, Tensor]:
    """The weights in a file, float32, under their names.

    Raises:
        FormatError: the file is damaged or of another version.
    """
    return restored(load_checked(path, FORM, VERSION), path)


def _packed(codes: Tensor) -> Tensor:
    """uint8 ``[rows, columns / 2]``, rounded up."""
    raised = torch.nn.functional.pad(codes, (0, codes.shape[1] % 2)) + (LARGEST_NIBBLE + 1)
    halves = raised.to(torch.uint8)
    return halves[:, 0::2] | (halves[:, 1::2] << 4)


def _unpacked(nibbles: Tensor, columns: int) -> Tensor:
    """int8 ``[rows, columns]``."""
    if nibbles.shape[1] != (columns + 1) // 2:
        raise ValueError(columns)
    both = torch.stack([nibbles & 15, nibbles >> 4], dim=2).flatten(1)
    return both[:, :columns].to(torch.int8) - (LARGEST_NIBBLE + 1)
