"""Backends of `expert_mlp` on CUDA against torch's loop; the Triton kernel also on the CPU, interpreted."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest
import torch
from torch import Tensor

from runtime.errors import LexpertError
from runtime.expert_mlp import expert_mlp
from runtime.kernels import expert_cuda, torch_backend
from runtime.kernels.expert_steps import expert_mlp_by

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that CUDA sees")
SIZES = [[5, 0, 17, 2], [1, 0, 0, 0], [0, 0, 0, 0], [70, 1, 3, 66]]


def problem(
    sizes: list[int],
    gated: bool,
    bias: bool,
    device: str,
    dtype: torch.dtype,
    width: int = 24,
    inner: int = 40,
) -> tuple[list[Tensor], Tensor, dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator) / shape[-1] ** 0.5
        return drawn.to(device, dtype)

    rows = 2 * inner if gated else inner
    arrays = [normal(sum(sizes), width), normal(4, rows, width), normal(4, width, inner)]
    biases = {"up_bias": normal(4, rows), "down_bias": normal(4, width)} if bias else {}
    offsets = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()], device=device)
    return arrays, offsets, {"gated": gated, **biases}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("gated", "bias"), [(True, False), (False, True)])
def test_two_grouped_products_are_the_block_of_each_expert(sizes: list[int], gated: bool, bias: bool) -> None:
    arrays, offsets, how = problem(sizes, gated, bias, "cpu", torch.float32)
    arrays = [array.requires_grad_() for array in arrays]

    def product(values: Tensor, offsets: Tensor, matrices: Tensor) -> Tensor:
        return torch_backend.grouped_matmul(values, offsets, matrices.transpose(1, 2))

    results = []
    for run in (lambda *given, **how: expert_mlp_by(product, *given, **how), torch_backend.expert_mlp):
        output = run(arrays[0], offsets, *arrays[1:], activation="silu", **how)
        results.append([output, *torch.autograd.grad(output.sum() + sum(a.sum() for a in arrays), arrays)])
    torch.testing.assert_close(*results)


def exactly(arrays: list[Tensor], offsets: Tensor, how: dict[str, Any]) -> Tensor:
    """The block in float32, of the same rounded numbers."""
    values, up, down = (array.float() for array in arrays)
    how = {name: value.float() if isinstance(value, Tensor) else value for name, value in how.items()}
    return torch_backend.expert_mlp(values, offsets, up, down, activation="silu", **how)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("gated", "bias"), [(True, False), (False, True)])
def test_the_grouped_product_of_torch_does_the_same_on_a_cpu(
    sizes: list[int], gated: bool, bias: bool
) -> None:
    arrays, offsets, how = problem(sizes, gated, bias, "cpu", torch.bfloat16)
    arrays = [array.requires_grad_() for array in arrays]
    ours = expert_cuda.expert_mlp(arrays[0], offsets, *arrays[1:], activation="silu", **how)
    torch.testing.assert_close(ours.float(), exactly(arrays, offsets, how), atol=0.03, rtol=0.03)
    if sum(sizes):
        torch.autograd.grad(ours.sum(), arrays)  # whose gradient is an expanded scalar


@on_gpu
@pytest.mark.parametrize("backend", ["grouped_mm", "triton", "megablocks"])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("gated", "bias"), [(True, False), (False, True)])
def test_cuda_backends_equal_torch(backend: str, sizes: list[int], gated: bool, bias: bool) -> None:
    arrays, offsets, how = problem(sizes, gated, bias, "cuda", torch.bfloat16)
    try:
        ours = expert_mlp(arrays[0], offsets, *arrays[1:], activation="silu", **how, backend=backend)
    except LexpertError as error:
        pytest.skip(f"{backend} cannot be had here: {error}")
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), exactly(arrays, offsets, how), atol=0.03, rtol=0.03)


@on_gpu
@pytest.mark.parametrize("backend", ["grouped_mm", "megablocks"])
@pytest.mark.parametrize("sizes", SIZES)
def test_cuda_gradients_equal_torch(backend: str, sizes: list[int]) -> None:
    arrays, offsets, how = problem(sizes, True, False, "cuda", torch.bfloat16)
    arrays = [array.requires_grad_() for array in arrays]
    results = []
    for name in (backend, "torch"):
        try:
            output = expert_mlp(arrays[0], offsets, *arrays[1:], activation="silu", **how, backend=name)
        except LexpertError as error:
            pytest.skip(f"{backend} cannot be had here: {error}")
        gradients = torch.autograd.grad(output.float().square().sum(), arrays)
        results.append([output.float(), *(gradient.float() for gradient in gradients)])
    torch.testing.assert_close(*results, atol=0.05, rtol=0.05)


@pytest.fixture(scope="module")
def triton_kernel() -> Any:
    pytest.importorskip("triton")
    if not torch.cuda.is_available():  # read when the kernel is defined
        os.environ["TRITON_INTERPRET"] = "1"
    return importlib.import_module("runtime.kernels.expert_triton")


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(
    ("gated", "bias", "activation"),
    [
        (True, False, "silu"),
        (True, True, "gelu"),
        (False, True, "relu2"),
        (False, False, "gelu_new"),
        (True, False, "quick_gelu"),
        (False, False, "sigmoid"),
        (True, False, "relu"),
        (True, True, "tanh"),
    ],
)
def test_triton_kernel_equals_torch(
    triton_kernel: Any, sizes: list[int], gated: bool, bias: bool, activation: str
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # No size is a multiple of a tile, so that every edge is cut.
    arrays, offsets, how = problem(sizes, gated, bias, device, torch.float32, 41, 70)
    given = arrays[0], offsets, *arrays[1:]
    ours = triton_kernel.expert_mlp(*given, activation=activation, **how)
    expected = torch_backend.expert_mlp(*given, activation=activation, **how)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
