from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moe.experts import Experts
from runtime.activations import SparseActivations
from runtime.errors import UsageError
from runtime.kernels.expert_activations import torch_activation

WIDTH, INNER = 6, 4


def gates_of(rows: list[list[int]], num_experts: int, seed: int = 0) -> SparseActivations:
    units = torch.tensor([unit for row in rows for unit in row], dtype=torch.int32)
    weights = torch.rand(len(units), generator=torch.Generator().manual_seed(seed)) + 0.1
    indptr = torch.tensor([0, *torch.tensor([len(row) for row in rows]).cumsum(0).tolist()])
    return SparseActivations(indptr.long(), units, weights.requires_grad_(), num_experts)


def by_definition(experts: Experts, hidden: Tensor, gates: SparseActivations, capacity: int | None) -> Tensor:
    """Token by token, expert by expert."""
    taken = [0] * experts.num_experts
    act = torch_activation(experts.activation)
    rows = []
    for token, (units, weights) in zip(hidden, gates, strict=True):
        output = torch.zeros_like(token)
        for unit, weight in zip(units.tolist(), weights, strict=True):
            taken[unit] += 1
            if capacity is not None and taken[unit] > capacity:
                continue
            inside = experts.up[unit] @ token
            bias = experts.gate_up_proj_bias if experts.gated else experts.up_proj_bias
            inside = inside if bias is None else inside + bias[unit]
            inside = act(inside[:INNER]) * inside[INNER:] if experts.gated else act(inside)
            outside = experts.down[unit] @ inside
            outside = outside if experts.down_proj_bias is None else outside + experts.down_proj_bias[unit]
            output = output + weight * outside
        rows.append(output)
    return torch.stack(rows) if rows else hidden * 0


def experts_of(gated: bool = True, bias: bool = False, num_experts: int = 3) -> Experts:
    torch.manual_seed(0)
    experts = Experts(num_experts, WIDTH, INNER, gated=gated, bias=bias, activation="gelu")
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return experts


@given(
    rows=st.lists(st.lists(st.integers(0, 2), max_size=4), max_size=6),
    capacity=st.none() | st.integers(0, 3),
    gated=st.booleans(),
    bias=st.booleans(),
)
def test_output_and_gradients_are_those_of_the_definition(
    rows: list[list[int]], capacity: int | None, gated: bool, bias: bool
) -> None:
    experts = experts_of(gated, bias)
    gates = gates_of(rows, 3)
    hidden = torch.randn(len(rows), WIDTH, requires_grad=True)
    asked = [hidden, gates.weights, *experts.parameters()]
    results = []
    for output in (experts(hidden, gates, capacity), by_definition(experts, hidden, gates, capacity)):
        loss = output.square().sum() + 0 * sum(tensor.sum() for tensor in asked)
        results.append([output, *torch.autograd.grad(loss, asked)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_the_state_is_that_of_transformers_experts() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in experts_of(bias=True).state_dict().items()}
    assert shapes == {
        "gate_up_proj": (3, 2 * INNER, WIDTH),
        "gate_up_proj_bias": (3, 2 * INNER),
        "down_proj": (3, WIDTH, INNER),
        "down_proj_bias": (3, WIDTH),
    }
    assert list(experts_of(gated=False).state_dict()) == ["up_proj", "down_proj"]


def test_bfloat16_keeps_its_dtype_and_is_near_float32() -> None:
    experts, gates = experts_of(), gates_of([[0, 2], [1], [], [2, 1, 0]], 3)
    hidden = torch.randn(4, WIDTH)
    exact = experts(hidden, gates)
    rounded = experts.bfloat16()(hidden.bfloat16(), gates)
    assert rounded.dtype == torch.bfloat16
    assert rounded[2].count_nonzero() == 0
    torch.testing.assert_close(rounded.float(), exact, atol=0.05, rtol=0.05)


def test_inference_mode_gives_the_same() -> None:
    experts, gates, hidden = experts_of(), gates_of([[0, 2], [1]], 3), torch.randn(2, WIDTH)
    with torch.inference_mode():
        ours = experts(hidden, gates)
    torch.testing.assert_close(ours, experts(hidden, gates))


@pytest.mark.parametrize(
    ("hidden", "rows", "message"),
    [
        ((2, WIDTH + 1), [[0], [1]], "experts take"),
        ((3, WIDTH), [[0], [1]], "do not fit 3 tokens"),
        ((1, 2, WIDTH), [[0], [1]], "experts take"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    hidden: tuple[int, ...], rows: list[list[int]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        experts_of()(torch.zeros(hidden), gates_of(rows, 3))


def test_sizes_and_activations_are_checked() -> None:
    with pytest.raises(UsageError, match="num_experts is 0"):
        Experts(0, 1, 1)
    with pytest.raises(UsageError, match="no activation 'wave'"):
        Experts(1, 1, 1, activation="wave")
