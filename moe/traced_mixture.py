"""A layer of experts in operations that `torch.compile` traces into one graph.

How many tokens an expert has is known only when the graph runs, so the product of each group with its matrix is
one operator that the compiler does not look into; all around it has shapes that do not depend on the routing.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


def mix_traced(experts: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What `moe.transformers_experts.lexpert_experts_forward` returns, for the same arguments."""
    num_tokens, k = top_k_index.shape
    # Experts of other processes come last, beyond all groups, where products are 0.
    units, order = top_k_index.reshape(-1).sort(stable=True)
    weights = top_k_weights.reshape(-1)[order].masked_fill(units >= experts.num_experts, 0)
    offsets = torch.searchsorted(units, torch.arange(experts.num_experts + 1, device=units.device))
    units = units.clamp(max=experts.num_experts - 1)
    rows = order // k

    def project(values: Tensor, name: str) -> Tensor:
        matrices = getattr(experts, name)
        matrices = matrices if experts.is_transposed else matrices.transpose(1, 2)
        product: Tensor = grouped_product(values, offsets, matrices)
        return product + getattr(experts, f"{name}_bias")[units] if experts.has_bias else product

    entries = hidden.to(experts.down_proj.dtype)[rows]
    if experts.has_gate:
        entries = experts._apply_gate(project(entries, "gate_up_proj"))
    else:
        entries = experts.act_fn(project(entries, "up_proj"))
    entries = project(entries, "down_proj")
    if experts.has_post_expert_norm:
        entries = experts.post_expert_norm(entries)
    entries = entries.to(torch.promote_types(entries.dtype, torch.float32))
    summed = entries.new_zeros((num_tokens, entries.shape[1]))
    return summed.index_add(0, rows, weights[:, None].to(entries.dtype) * entries).to(hidden.dtype)


@torch.library.custom_op("lexpert::grouped_product", mutates_args=())
def grouped_product(values: Tensor, offsets: Tensor, matrices: Tensor) -> Tensor:
    """``values[i] @ matrices[j]`` for the entries `i` of group `j`; 0 for those beyond the last group.

    Args:
        values: ``[entries, in]``.
        offsets: int64 ``[groups + 1]``, from 0 to at most `entries`.
        matrices: ``[groups, in, out]``.

    Returns:
        ``[entries, out]``.
    """
    product = values.new_zeros((len(values), matrices.shape[2]))
    for (start, end), matrix in zip(pairwise(offsets.tolist()), matrices, strict=True):
        if end > start:
            torch.mm(values[start:end], matrix, out=product[start:end])
    return product


@torch.library.custom_op("lexpert::grouped_outer_product", mutates_args=())
def grouped_outer_product(left: Tensor, offsets: Tensor, right: Tensor) -> Tensor:
    """``Σ_i left[i]ᵀ right[i]`` over the entries `i` of each group: ``[groups, left's width, right's width]``."""
    product = left.new_zeros((len(offsets) - 1, left.shape[1], right.shape[1]))
    for (start, end), matrix in zip(pairwise(offsets.tolist()), product, strict=True):
        if end > start:
            torch.mm(left[start:end].T, right[start:end], out=matrix)
    return product


@grouped_product.register_fake
def _(values: Tensor, offsets: Tensor, matrices: Tensor) -> Tensor:
    del offsets
    return values.new_empty((len(values), matrices.shape[2]))


@grouped_outer_product.register_fake
def _(left: Tensor, offsets: Tensor, right: Tensor) -> Tensor:
    return left.new_empty((len(offsets) - 1, left.shape[1], right.shape[1]))


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
    values, offsets, matrices = ctx.saved_tensors
    of_values, _, of_matrices = ctx.needs_input_grad
    gradient = gradient.contiguous()
    return (
        grouped_product(gradient, offsets, matrices.transpose(1, 2)) if of_values else None,
        None,
        grouped_outer_product(values, offsets, gradient) if of_matrices else None,
    )


grouped_product.register_autograd(_gradients, setup_context=_remember)
