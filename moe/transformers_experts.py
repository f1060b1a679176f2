"""Any mixture model of transformers on our experts: what ``experts_implementation="lexpert"`` runs.

transformers keeps the weights of all experts of a layer in one module and leaves it to a registered function what
is done with them. Plain experts (an activation that `runtime.expert_mlp` knows, with or without gate and bias) go
through `moe.mixture.mix`. Others, with a gate of their own, transposed weights or a norm behind each expert, go
through two grouped products with the model's own functions between them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from moe.mixture import add_up, mix, under_autocast
from moe.traced_mixture import mix_traced
from runtime.activations import SparseActivations
from runtime.combine import gather, grouped_matmul
from runtime.dispatch import dispatch
from runtime.errors import UsageError
from runtime.kernels.expert_activations import canonical_activation
from runtime.kernels.few_tokens import mix_few_tokens

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
QUANTISED = "lexpert_quantised"
"""Where experts keep `QuantisedWeights` of both projections that stand in for their parameters."""


def lexpert_experts_forward(
    experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """``Σ_e weight[t, e] · expert_e(hidden[t])`` for each token.

    With expert parallelism, an index of `num_experts` or more is an expert that another process has, and adds
    nothing here. Under `torch.compile` the same is done in operations that can be traced.

    Args:
        experts: a module of transformers under ``@use_experts_implementation``.
        hidden_states: ``[tokens, width]``.
        top_k_index: int64 ``[tokens, k]``.
        top_k_weights: ``[tokens, k]``.

    Returns:
        ``[tokens, width]``, of the dtype of `hidden_states`.

    Raises:
        UsageError: the weights are not floating; they are of a quantised checkpoint.
    """
    up = experts.gate_up_proj if experts.has_gate else experts.up_proj
    if up.dtype not in DTYPES:
        raise UsageError(
            f"{type(experts).__name__} holds weights of {str(up.dtype).removeprefix('torch.')}, which "
            "experts_implementation='lexpert' cannot run; load the model with experts_implementation='eager'"
        )
    quantised = getattr(experts, QUANTISED, None)
    if torch.compiler.is_compiling() and quantised is None:
        return mix_traced(experts, hidden_states, top_k_index, top_k_weights)
    activation = plain_activation(experts)
    if activation is None:
        return _mix_by_steps(experts, hidden_states, _gates(experts, top_k_index, top_k_weights))
    up, down = quantised or (up, experts.down_proj)
    up_bias, down_bias = biases(experts)
    if not experts._is_expert_parallel:
        # As `mix` does, without the gates in between, which take as long as a tenth of the products for one token.
        output = mix_few_tokens(
            hidden_states,
            None,
            top_k_index,
            top_k_weights,
            up,
            down,
            activation=activation,
            gated=experts.has_gate,
            up_bias=up_bias,
            down_bias=down_bias,
        )
        if output is not None:
            return output
    return mix(
        hidden_states,
        _gates(experts, top_k_index, top_k_weights),
        up,
        down,
        activation=activation,
        gated=experts.has_gate,
        up_bias=up_bias,
        down_bias=down_bias,
    )


def plain_activation(experts: Any) -> str | None:
    """The activation of experts that are a feed-forward block and nothing else; None for all others."""
    own_gate = experts.has_gate and type(experts)._apply_gate is not _default_gate()
    if own_gate or experts.is_transposed or experts.has_post_expert_norm:
        return None
    kind: type = type(experts.act_fn)
    return _name_of(kind)


def biases(experts: Any) -> tuple[Tensor | None, Tensor | None]:
    """Biases of both projections, ``[experts, rows]``, or None."""
    if not experts.has_bias:
        return None, None
    return experts.gate_up_proj_bias if experts.has_gate else experts.up_proj_bias, experts.down_proj_bias


@cache
def _default_gate() -> Any:
    from transformers.integrations import moe as registry

    return getattr(registry, "_default_apply_gate", None)


@cache
def _name_of(function: type) -> str | None:
    from transformers.activations import ACT2CLS

    for name, made_by in ACT2CLS.items():
        # Those with arguments of their own could differ in them.
        if made_by is function and _is_known(name):
            return name
    return None


def _is_known(activation: str) -> bool:
    try:
        canonical_activation(activation)
    except UsageError:
        return False
    return True


def _gates(experts: Any, top_k_index: Tensor, top_k_weights: Tensor) -> SparseActivations:
    if not experts._is_expert_parallel:
        return SparseActivations.from_topk(top_k_index, top_k_weights, experts.num_experts)
    here = top_k_index < experts.num_experts
    indptr = torch.nn.functional.pad(here.sum(1).cumsum(0), (1, 0))
    return SparseActivations(indptr, top_k_index[here], top_k_weights[here], experts.num_experts)


def _mix_by_steps(experts: Any, hidden: Tensor, gates: SparseActivations) -> Tensor:
    up = experts.gate_up_proj if experts.has_gate else experts.up_proj
    up, down = under_autocast(up), under_autocast(experts.down_proj)
    up_bias, down_bias = biases(experts)
    routed = dispatch(gates)

    def project(values: Tensor, matrices: Tensor, bias: Tensor | None) -> Tensor:
        matrices = matrices if experts.is_transposed else matrices.transpose(1, 2)
        product: Tensor = grouped_matmul(values.to(matrices.dtype), routed.offsets, matrices)
        return product if bias is None else product + bias.repeat_interleave(routed.load, 0)

    entries = project(gather(hidden.to(up.dtype), routed), up, up_bias)
    entries = experts._apply_gate(entries) if experts.has_gate else experts.act_fn(entries)
    entries = project(entries, down, down_bias)
    if experts.has_post_expert_norm:
        entries = experts.post_expert_norm(entries)
    return add_up(entries, routed).to(hidden.dtype)
