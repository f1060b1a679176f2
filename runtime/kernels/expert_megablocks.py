"""Experts on CUDA through MegaBlocks' grouped product (Gale et al. 2022), bfloat16, forward and backward.

Its package pins an old torch, so it is loaded as a prebuilt kernel through the package ``kernels``, which fetches
it over the network when it is first asked for. Before it is used for anything, its results and its layout of
weights are checked against torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from runtime.errors import NotFoundError
from runtime.kernels import torch_backend
from runtime.kernels.expert_steps import expert_mlp_by

SOURCE = "kernels-community/megablocks"
VERSION = 1
TOLERANCE = 0.02
"""Largest error relative to the largest number: two roundings to bfloat16 and the order of a sum."""


def unsuitable(*arrays: Tensor) -> str | None:
    """Why MegaBlocks cannot be used here, or None; loads and checks it at the first call."""
    for array in arrays:
        if array.is_floating_point() and array.dtype != torch.bfloat16:
            return f"it computes in bfloat16, not {str(array.dtype).removeprefix('torch.')}"
    _, reason = _loaded()
    return reason


def expert_mlp(values: Tensor, offsets: Tensor, up: Tensor, down: Tensor, **how: Any) -> Tensor:
    grouped_gemm, reason = _loaded()
    if grouped_gemm is None:
        raise NotFoundError(f"MegaBlocks cannot be used: {reason}")
    return expert_mlp_by(_product_of(grouped_gemm), values, offsets, up, down, **how)


def _product_of(grouped_gemm: Callable[..., Any]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def product(values: Tensor, offsets: Tensor, matrices: Tensor) -> Tensor:
        result: Tensor = grouped_gemm(values.contiguous(), matrices, offsets.diff().cpu(), trans_b=True)
        return result

    return product


@cache
def _loaded() -> tuple[Callable[..., Any] | None, str | None]:
    try:
        from kernels import get_kernel

        grouped_gemm: Callable[..., Any] = get_kernel(SOURCE, version=VERSION).gg_ops.gmm
        reason = _difference(grouped_gemm)
    # Whatever goes wrong in a library that is fetched at run time, the other backends can do without it.
    except Exception as error:
        return None, f"{SOURCE} could not be loaded and tried: {type(error).__name__}: {error}"
    return (grouped_gemm, None) if reason is None else (None, reason)


def _difference(grouped_gemm: Callable[..., Any]) -> str | None:
    """How its results differ from torch's, on groups of different sizes and an empty one; None if they do not."""
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator, device="cuda") / shape[-1] ** 0.5
        return drawn.bfloat16().requires_grad_()

    offsets = torch.tensor([0, 16, 16, 56], device="cuda")
    arrays = normal(56, 64), normal(3, 96, 64), normal(3, 64, 48)
    results = []
    for run in (_by(grouped_gemm), torch_backend.expert_mlp):
        output = run(arrays[0], offsets, *arrays[1:], activation="silu", gated=True)
        results.append([output, *torch.autograd.grad(output.float().square().sum(), arrays)])
    names = ("output", "gradient of values", "gradient of up", "gradient of down")
    for name, ours, expected in zip(names, *results, strict=True):
        error = float((ours - expected).abs().max() / expected.abs().max())
        if not error <= TOLERANCE:
            return f"its {name} differs from torch's by {error:.2g} of the largest number"
    return None


def _by(grouped_gemm: Callable[..., Any]) -> Callable[..., Tensor]:
    def run(values: Tensor, offsets: Tensor, up: Tensor, down: Tensor, **how: Any) -> Tensor:
        return expert_mlp_by(_product_of(grouped_gemm), values, offsets, up, down, **how)

    return run
