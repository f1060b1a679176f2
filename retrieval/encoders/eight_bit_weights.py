"""Weights of a model in a quarter of their bytes: matrices as 8-bit integers with a scale for each row.

``eight_bit.safetensors`` takes the place of ``model.safetensors`` in a model folder. A matrix ``NAME`` is kept as
``NAME.codes`` int8 ``[rows, columns]`` and ``NAME.scales`` float32 ``[rows]``, with ``matrix ≈ scales[:, None] ·
codes``; everything else is kept in float16. The header's one entry has the version of this form and the SHA-256 of
all tensors; the order of several would change from file to file, and equal weights are to make equal files. It is a
form on disk alone: a model computes with the float32 weights that it stands for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from retrieval.encoders.fingerprint import EIGHT_BIT_WEIGHTS
from runtime.errors import FormatError, UsageError

VERSION = "1"
HEADER = "eight_bit"
LARGEST_CODE = 127
CODES, SCALES = ".codes", ".scales"


def quantise_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 ``[rows, columns]`` and scales float32 ``[rows]``; each value is off by half a scale at most.

    Args:
        matrix: float32 ``[rows, columns]``, finite.
    """
    scales = matrix.abs().amax(1).float() / LARGEST_CODE if matrix.shape[1] else matrix.new_zeros(len(matrix))
    divisors = torch.where(scales > 0, scales, 1.0)
    codes = (matrix.float() / divisors[:, None]).round().clamp(-LARGEST_CODE, LARGEST_CODE)
    return codes.to(torch.int8), scales


def save_eight_bit(weights: Mapping[str, Tensor], folder: Path) -> Path:
    """Write `weights` into `folder` in this form; the file appears when it is whole. Returns its path.

    Raises:
        UsageError: a weight is NaN or infinite, or too large for float16.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        kept = weight.detach().cpu()
        if not kept.dtype.is_floating_point:
            tensors[name] = kept.contiguous()
            continue
        if kept.ndim == 2:
            tensors[name + CODES], tensors[name + SCALES] = quantise_rows(kept)
        else:
            tensors[name] = kept.to(torch.float16).contiguous()
        if not bool(torch.isfinite(kept).all()) or not bool(torch.isfinite(tensors.get(name, kept)).all()):
            raise UsageError(
                f"the weight {name} has values that 8 and 16 bits cannot hold; keep it in float32"
            )
    path = folder / EIGHT_BIT_WEIGHTS
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, {HEADER: f"{VERSION} {_digest(tensors)}"})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.rename(path)
    return path


def load_eight_bit(folder: Path) -> dict[str, Tensor]:
    """The weights in `folder`, float32, under their names.

    Raises:
        FormatError: the file is damaged or of another version.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / EIGHT_BIT_WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            version, _, digest = (file.metadata() or {}).get(HEADER, "").partition(" ")
            if version != VERSION:
                raise FormatError(
                    f"{path} has version {version!r}, but only {VERSION} is known here; "
                    "update lexpert or save the model again"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} cannot be read ({error}); get the model again") from None
    if _digest(tensors) != digest:
        raise FormatError(f"{path} is damaged: its checksum does not fit; get the model again")
    weights = {}
    for name, tensor in tensors.items():
        if name.endswith(CODES):
            whole = name.removesuffix(CODES)
            weights[whole] = tensor.float() * tensors[whole + SCALES][:, None]
        elif not name.endswith(SCALES):
            weights[name] = tensor.float() if tensor.dtype.is_floating_point else tensor
    return weights


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].numpy()
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
