"""Dispatch, experts, combine: what a layer of experts does with its tokens once they are routed."""

from __future__ import annotations

import torch
from torch import Tensor

from runtime.activations import SparseActivations
from runtime.combine import combine, gather
from runtime.dispatch import Dispatch, dispatch
from runtime.expert_mlp import expert_mlp
from runtime.expert_weights import QuantisedWeights
from runtime.kernels.few_tokens import mix_few_tokens


def mix(
    hidden: Tensor,
    gates: SparseActivations,
    up: Tensor | QuantisedWeights,
    down: Tensor | QuantisedWeights,
    *,
    activation: str = "silu",
    gated: bool = True,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    capacity: int | None = None,
) -> Tensor:
    """``output[t] = Σ_e gate[t, e] · expert_e(hidden[t])`` over the experts that the gates of token `t` light up.

    Each expert is a feed-forward block, ``down · (act(gate · x) * (up · x))``, or ``down · act(up · x)``.

    Args:
        hidden: ``[tokens, width]``.
        gates: torch, ``[tokens, experts]``; gradients reach its weights.
        up: ``[experts, 2 · inner, width]`` when `gated`, the rows of the gate first, else
            ``[experts, inner, width]``. `hidden` is converted to its dtype, unless it is quantised. Under
            `torch.autocast`, both are used in its dtype.
        down: ``[experts, width, inner]``.
        activation: a name of `runtime.expert_mlp`, as transformers has it.
        up_bias: ``[experts, 2 · inner]`` or ``[experts, inner]``.
        down_bias: ``[experts, width]``.
        capacity: most tokens that an expert takes; of the later ones this share of the output is missing.

    Returns:
        ``[tokens, width]``, of the dtype of `hidden`; 0 for a token that no expert took.
    """
    if not isinstance(up, QuantisedWeights) and not isinstance(down, QuantisedWeights):
        up, down = under_autocast(up), under_autocast(down)
        up_bias, down_bias = (None if bias is None else under_autocast(bias) for bias in (up_bias, down_bias))
    if capacity is None and gates.num_units == up.shape[0]:
        output = mix_few_tokens(
            hidden,
            gates.indptr,
            gates.units,
            gates.weights,
            up,
            down,
            activation=activation,
            gated=gated,
            up_bias=up_bias,
            down_bias=down_bias,
        )
        if output is not None:
            return output
    routed = dispatch(gates, capacity)
    values = hidden if isinstance(up, QuantisedWeights) else hidden.to(up.dtype)
    entries = expert_mlp(
        gather(values, routed),
        routed.offsets,
        up,
        down,
        activation=activation,
        gated=gated,
        up_bias=up_bias,
        down_bias=down_bias,
    )
    return add_up(entries, routed).to(hidden.dtype)


def under_autocast(weights: Tensor) -> Tensor:
    """Weights in the dtype that autocast asks for on their device, if it is on, as torch has it for linear layers.

    Gradients reach the weights in their own dtype. float64 stays.
    """
    device = weights.device.type
    if weights.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return weights
    return weights.to(torch.get_autocast_dtype(device))


def add_up(entries: Tensor, routed: Dispatch) -> Tensor:
    """`combine` in float32 at least: a token adds up few numbers, and bfloat16 would round each of them."""
    summed: Tensor = combine(entries.to(torch.promote_types(entries.dtype, torch.float32)), routed)
    return summed
