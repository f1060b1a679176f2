from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.combine import grouped_matmul
from runtime.errors import UsageError
from runtime.kernels.registry import kernel


@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    inner=st.sampled_from([5, 8, 24]),
    outer=st.sampled_from([3, 16, 40]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    transposed=st.booleans(),
)
def test_products_of_cpu_tensors_are_those_of_torch(
    sizes: list[int], inner: int, outer: int, dtype: torch.dtype, transposed: bool
) -> None:
    generator = torch.Generator().manual_seed(sum(sizes))
    offsets = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()])
    values = torch.randn(sum(sizes), inner, generator=generator).to(dtype)
    shape = (len(sizes), outer, inner) if transposed else (len(sizes), inner, outer)
    matrices = torch.randn(shape, generator=generator).to(dtype)
    matrices = matrices.transpose(1, 2) if transposed else matrices
    ours = grouped_matmul(values, offsets, matrices, backend="expert_cpu")
    expected = grouped_matmul(values.double(), offsets, matrices.double(), backend="torch")
    assert ours.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(ours.double(), expected, atol=tolerance * 4, rtol=tolerance)


def test_products_of_cpu_tensors_keep_their_gradients() -> None:
    values, matrices = torch.randn(3, 8, requires_grad=True), torch.randn(2, 16, 8, requires_grad=True)
    product = grouped_matmul(values, torch.tensor([0, 1, 3]), matrices.transpose(1, 2), backend="expert_cpu")
    for gradient in torch.autograd.grad(product.sum(), [values, matrices]):
        assert gradient.abs().sum() > 0


def test_offsets_that_are_views_are_computed() -> None:
    values, matrices = torch.randn(20, 16), torch.randn(2, 8, 16).transpose(1, 2)
    spread = torch.tensor([[0, 99], [7, 99], [20, 99]])
    expected = grouped_matmul(values, torch.tensor([0, 7, 20]), matrices)
    assert torch.equal(grouped_matmul(values, spread[:, 0], matrices), expected)


@pytest.mark.parametrize(
    "offsets", [[0.0, 2.0, 3.0], [[0], [2], [3]], [0, 4, 3], [-2, 1, 3], [0, 1, 2], [0, 3]]
)
def test_offsets_that_lead_elsewhere_are_refused(offsets: list[Any]) -> None:
    with pytest.raises(UsageError, match="offsets"):
        grouped_matmul(torch.zeros(3, 8), torch.tensor(offsets), torch.zeros(2, 16, 8).transpose(1, 2))


def test_offsets_that_decrease_are_refused() -> None:
    run = kernel("grouped_matmul", torch.zeros(1), backend="expert_cpu")
    with pytest.raises(ValueError, match="decrease"):
        run(torch.zeros(3, 8), torch.tensor([0, 4, 3]), torch.zeros(2, 16, 8).transpose(1, 2))
