"""Experts on the processor with gradients: forward by compiled products, backward by one matrix product after another.

What autograd makes of a loop over experts keeps a gradient of its own for each expert and puts all of them together
at the end, and multiplies bfloat16 as slowly as this processor does. Here each product goes straight to its place, in
float32.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from runtime.errors import UsageError

Products = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]
"""``products(values, weights, bias, offsets)``: float32 ``[entries, rows]``."""


def expert_mlp_with_gradients(
    values: Tensor,
    offsets: Tensor,
    up: Tensor,
    down: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    *,
    activate: Callable[[Tensor], Tensor],
    gated: bool,
    products: Products,
) -> Tensor:
    """`runtime.expert_mlp.expert_mlp` whose gradients reach values, weights and biases, but have none themselves.

    To ask for those is a UsageError, raised where the second backward comes through here.
    """
    result: Tensor = _ExpertMlp.apply(
        values, up, down, up_bias, down_bias, offsets, _block(activate, gated), products
    )
    return result


def _block(activate: Callable[[Tensor], Tensor], gated: bool) -> Callable[[Tensor], Tensor]:
    def between(hidden: Tensor) -> Tensor:
        if not gated:
            return activate(hidden)
        gate, passed = hidden.chunk(2, dim=1)
        return activate(gate) * passed

    return between


class _ExpertMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        up: Tensor,
        down: Tensor,
        up_bias: Tensor | None,
        down_bias: Tensor | None,
        offsets: Tensor,
        between: Callable[[Tensor], Tensor],
        products: Products,
    ) -> Tensor:
        hidden = products(values.float(), up, up_bias, offsets)
        # Kept in the dtype of the values, in which a model's other layers keep theirs.
        ctx.save_for_backward(values, up, down, up_bias, down_bias, offsets, hidden.to(values.dtype))
        ctx.between = between
        return products(between(hidden), down, down_bias, offsets).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found = _Gradients.apply(gradients[0], *ctx.saved_tensors, ctx.between, ctx.needs_input_grad)
        return *found, None, None, None


class _Gradients(torch.autograd.Function):
    """The gradients, as a function of all that they depend on: whoever differentiates them comes by here.

    torch's own mark for what can be differentiated once only looks at the gradient that comes in. Where that one is
    constant, it takes the gradients for constants too.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ARG004 - nothing to remember
        gradient_of_result: Tensor,
        values: Tensor,
        up: Tensor,
        down: Tensor,
        up_bias: Tensor | None,
        down_bias: Tensor | None,
        offsets: Tensor,
        hidden: Tensor,
        between: Callable[[Tensor], Tensor],
        wanted: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        of_values, of_up, of_down, of_up_bias, of_down_bias = (
            torch.zeros_like(tensor) if wanted[place] and tensor is not None else None
            for place, tensor in enumerate((values, up, down, up_bias, down_bias))
        )
        for expert, (begin, end) in enumerate(pairwise(offsets.tolist())):
            if begin == end:
                continue
            gradient = gradient_of_result[begin:end].float()
            with torch.enable_grad():
                before = hidden[begin:end].float().requires_grad_()
                activated = between(before)
            _put_product(of_down, expert, gradient.T, activated)
            if of_down_bias is not None:
                of_down_bias[expert] = gradient.sum(0)
            if of_values is None and of_up is None and of_up_bias is None:
                continue
            (of_hidden,) = torch.autograd.grad(activated, before, gradient @ down[expert].float())
            _put_product(of_up, expert, of_hidden.T, values[begin:end].float())
            if of_up_bias is not None:
                of_up_bias[expert] = of_hidden.sum(0)
            if of_values is not None:
                of_values[begin:end] = of_hidden @ up[expert].float()
        return of_values, of_up, of_down, of_up_bias, of_down_bias

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # noqa: ARG004
        raise UsageError(
            "gradients of experts in float32 and bfloat16 on the processor have no gradients of their own; call "
            'expert_mlp with backend="torch", or take experts out of what is differentiated twice'
        )


def _put_product(target: Tensor | None, expert: int, left: Tensor, right: Tensor) -> None:
    if target is None:
        return
    if target.dtype == torch.float32:
        torch.mm(left, right.detach(), out=target[expert])
    else:
        target[expert] = left @ right.detach()
