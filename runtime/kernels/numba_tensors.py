"""CPU tensors in the compiled kernels of `runtime.kernels.numba_cpu`, which see their memory as NumPy arrays.

One token passes through each layer in a fraction of a millisecond, in which every operation of torch counts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from runtime.kernels import numba_cpu, torch_backend


def dispatch(
    indptr: Tensor, units: Tensor, num_units: int, capacity: int | None = None
) -> tuple[Tensor, ...]:
    arrays = numba_cpu.dispatch(indptr.numpy(), units.numpy(), num_units, capacity)
    return tuple(torch.from_numpy(array) for array in arrays)


def transpose(indptr: Tensor, units: Tensor, weights: Tensor, num_units: int) -> tuple[Tensor, ...]:
    if _needs_torch(weights):
        return torch_backend.transpose(indptr, units, weights, num_units)
    arrays = numba_cpu.transpose(indptr.numpy(), units.numpy(), weights.detach().numpy(), num_units)
    return tuple(torch.from_numpy(array) for array in arrays)


def count_units(indptr: Tensor, units: Tensor, num_units: int) -> Tensor:
    return torch.from_numpy(numba_cpu.count_units(indptr.numpy(), units.numpy(), num_units))


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if _needs_torch(scores):
        return torch_backend.top_k(scores, k)
    units, kept = numba_cpu.top_k(scores.detach().numpy(), k)
    return torch.from_numpy(units), torch.from_numpy(kept)


def combine(values: Tensor, rows: Tensor, weights: Tensor, num_rows: int) -> Tensor:
    if _needs_torch(values, weights):
        return torch_backend.combine(values, rows, weights, num_rows)
    arrays = values.detach().numpy(), rows.numpy(), weights.detach().numpy()
    combined = numba_cpu.combine(*arrays, num_rows)
    return torch.from_numpy(combined)


def _needs_torch(*floats: Any) -> bool:
    """Whether gradients are recorded, or the dtype is one that NumPy has not or only emulates."""
    return any(
        (array.requires_grad and torch.is_grad_enabled()) or array.dtype in (torch.bfloat16, torch.float16)
        for array in floats
    )
