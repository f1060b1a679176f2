"""Experts on CUDA in a Triton kernel that computes gate, projection and activation at once; forward only.

One program computes a tile of the output of one expert. Which rows belong to which program is worked out on the
device, so that nothing waits for the host.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.expert_activations import canonical_activation
from runtime.kernels.expert_steps import expert_mlp_by

FUSED = ("gelu", "gelu_pytorch_tanh", "linear", "quick_gelu", "relu", "relu2", "sigmoid", "silu")
"""Activations that the kernel has; any other runs between two of its products."""


def unsuitable(*arrays: Tensor) -> str | None:
    """Why the kernel cannot take these arrays, or None."""
    if torch.is_grad_enabled() and any(array.requires_grad for array in arrays):
        return "it has no backward"
    return None


def expert_mlp(
    values: Tensor,
    offsets: Tensor,
    up: Tensor,
    down: Tensor,
    *,
    activation: str,
    gated: bool,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
) -> Tensor:
    activation = canonical_activation(activation)
    if activation not in FUSED:
        how: dict[str, Any] = {"activation": activation, "gated": gated}
        return expert_mlp_by(_product, values, offsets, up, down, **how, up_bias=up_bias, down_bias=down_bias)
    hidden = _project(values, offsets, up, up_bias, activation, gated)
    return _project(hidden, offsets, down, down_bias, "linear", False)


def _product(values: Tensor, offsets: Tensor, matrices: Tensor) -> Tensor:
    return _project(values, offsets, matrices, None, "linear", False)


def _project(
    values: Tensor, offsets: Tensor, matrices: Tensor, bias: Tensor | None, activation: str, gated: bool
) -> Tensor:
    """``act(values[i] @ matrices[j]ᵀ + bias[j])``, or with its first half of rows as the gate of the second."""
    num_entries, depth = values.shape
    num_rows = matrices.shape[1] // 2 if gated else matrices.shape[1]
    result = values.new_empty((num_entries, num_rows))
    if not num_entries:
        return result
    # Few entries per expert waste most of a high tile, and all of them read every weight of their expert.
    height = min(64, max(16, triton.next_power_of_2(num_entries // len(matrices))))
    experts, starts = _tiles(offsets, height, num_entries)
    width, step = 64, 64 if values.element_size() <= 2 else 32
    _project_tile[len(experts), triton.cdiv(num_rows, width)](
        values,
        matrices,
        bias if bias is not None else values,
        result,
        offsets,
        experts,
        starts,
        len(matrices),
        num_rows,
        depth,
        *values.stride(),
        *matrices.stride(),
        *result.stride(),
        ACTIVATION=activation,
        GATED=gated,
        BIASED=bias is not None,
        HEIGHT=height,
        WIDTH=width,
        STEP=step,
    )
    return result


def _tiles(offsets: Tensor, height: int, num_entries: int) -> tuple[Tensor, Tensor]:
    """Expert and first entry of each tile of at most `height` entries; the number of experts where there is none.

    There may be as many tiles as all entries fill, and one more that is not full for each expert.
    """
    num_experts = len(offsets) - 1
    tiles = (offsets.diff() + height - 1) // height
    ends = tiles.cumsum(0)
    index = torch.arange(triton.cdiv(num_entries, height) + num_experts, device=offsets.device)
    experts = torch.searchsorted(ends, index, right=True)
    known = experts.clamp(max=num_experts - 1)
    return experts, offsets[known] + (index - (ends - tiles)[known]) * height


@triton.jit
def _project_tile(  # type: ignore[no-untyped-def]
    values,
    matrices,
    bias,
    result,
    offsets,
    experts,
    starts,
    num_experts,
    num_rows,
    depth,
    value_entry,
    value_column,
    matrix_expert,
    matrix_row,
    matrix_column,
    result_entry,
    result_column,
    ACTIVATION: tl.constexpr,  # noqa: N803 - constants are in capitals
    GATED: tl.constexpr,  # noqa: N803
    BIASED: tl.constexpr,  # noqa: N803
    HEIGHT: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
    STEP: tl.constexpr,  # noqa: N803
):
    expert = tl.load(experts + tl.program_id(0))
    if expert < num_experts:
        entries = tl.load(starts + tl.program_id(0)) + tl.arange(0, HEIGHT)
        is_entry = entries < tl.load(offsets + expert + 1)
        rows = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        is_row = rows < num_rows
        matrix = matrices + expert * matrix_expert
        passed = tl.full((HEIGHT, WIDTH), 0.0, tl.float32)
        gate = tl.full((HEIGHT, WIDTH), 0.0, tl.float32)
        for first in range(0, depth, STEP):
            columns = first + tl.arange(0, STEP)
            is_column = columns < depth
            places = entries[:, None] * value_entry + columns[None, :] * value_column
            tile = tl.load(values + places, mask=is_entry[:, None] & is_column[None, :], other=0.0)
            places = rows[None, :] * matrix_row + columns[:, None] * matrix_column
            is_weight = is_row[None, :] & is_column[:, None]
            if GATED:
                weights = tl.load(matrix + places, mask=is_weight, other=0.0)
                gate = tl.dot(tile, weights, gate, input_precision="ieee")
                places += num_rows * matrix_row
            weights = tl.load(matrix + places, mask=is_weight, other=0.0)
            passed = tl.dot(tile, weights, passed, input_precision="ieee")
        if BIASED:
            biases = bias + expert * (2 * num_rows if GATED else num_rows) + rows
            if GATED:
                gate += tl.load(biases, mask=is_row, other=0.0).to(tl.float32)[None, :]
                biases += num_rows
            passed += tl.load(biases, mask=is_row, other=0.0).to(tl.float32)[None, :]
        output = _activate(gate, ACTIVATION) * passed if GATED else _activate(passed, ACTIVATION)
        places = entries[:, None] * result_entry + rows[None, :] * result_column
        tl.store(
            result + places, output.to(result.dtype.element_ty), mask=is_entry[:, None] & is_row[None, :]
        )


@triton.jit
def _activate(x, NAME: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
    if NAME == "silu":
        x = x / (1.0 + tl.exp(-x))
    elif NAME == "relu":
        x = tl.maximum(x, 0.0)
    elif NAME == "relu2":
        x = tl.maximum(x, 0.0) * tl.maximum(x, 0.0)
    elif NAME == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif NAME == "gelu_pytorch_tanh":
        # 0.5 · (1 + tanh y) is the sigmoid of 2 y, with y = √(2/π) · (x + 0.044715 · x³)
        x = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    elif NAME == "quick_gelu":
        x = x / (1.0 + tl.exp(-1.702 * x))
    elif NAME == "sigmoid":
        x = 1.0 / (1.0 + tl.exp(-x))
    return x
