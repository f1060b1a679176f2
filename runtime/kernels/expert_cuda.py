"""Experts on CUDA through torch's own grouped product, bfloat16, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from runtime.kernels.expert_steps import expert_mlp_by

OLDEST = (8, 0)
"""Compute capability from which the grouped product is one kernel and not a loop."""

ALIGNMENT = 16
"""Bytes of which the strides of every matrix must be multiples."""


def unsuitable(*arrays: Tensor) -> str | None:
    """Why the grouped product cannot take these arrays, or None."""
    if not hasattr(torch.nn.functional, "grouped_mm"):
        return "it needs a torch that has torch.nn.functional.grouped_mm"
    for array in arrays:
        if torch.cuda.get_device_capability(array.device) < OLDEST:
            return f"it needs compute capability {OLDEST[0]}.{OLDEST[1]}"
        if array.is_floating_point() and array.shape[-1] * array.element_size() % ALIGNMENT:
            return f"rows of {array.shape[-1]} numbers do not fill multiples of {ALIGNMENT} bytes"
    return None


def expert_mlp(values: Tensor, offsets: Tensor, up: Tensor, down: Tensor, **how: Any) -> Tensor:
    return expert_mlp_by(_product, values, offsets, up, down, **how)


def _product(values: Tensor, offsets: Tensor, matrices: Tensor) -> Tensor:
    ends = offsets[1:].int()
    return torch.nn.functional.grouped_mm(values.contiguous(), matrices.transpose(1, 2), offs=ends)
