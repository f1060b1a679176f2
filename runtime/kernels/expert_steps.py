"""Feed-forward blocks of experts out of two grouped products, for libraries that only have the product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from runtime.kernels.expert_activations import torch_activation

Product = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``values[i] @ matrices[j]ᵀ`` for the entries `i` of group `j`: values ``[entries, in]``, int64 offsets
``[groups + 1]`` and matrices ``[groups, out, in]`` to ``[entries, out]``, differentiable in both."""


def expert_mlp_by(
    product: Product,
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
    """`runtime.expert_mlp.expert_mlp` with `product` for both projections."""
    activate = torch_activation(activation)

    def project(entries: Tensor, matrices: Tensor, bias: Tensor | None) -> Tensor:
        projected = product(entries, offsets, matrices)
        if bias is None:
            return projected
        return projected + bias.repeat_interleave(offsets.diff(), 0, output_size=len(entries))

    hidden = project(values, up, up_bias)
    if gated:
        gate, passed = hidden.chunk(2, dim=1)
        hidden = activate(gate) * passed
    else:
        hidden = activate(hidden)
    result: Tensor = _ContiguousGradient.apply(project(hidden, down, down_bias))
    return result


class _ContiguousGradient(torch.autograd.Function):
    """Hands its argument on; the backward of grouped products rejects gradients that are expanded scalars."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ARG004 - nothing to remember
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        return gradients[0].contiguous()
