"""What a token costs, counted in a pass of the model itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

BACKWARD_FACTOR = 2
"""Each product of the forward pass has two in the backward one, by its input and by its weights."""


@torch.no_grad()
def forward_flops_per_token(model: Any, ids: Tensor) -> float:
    """Floating-point operations of the forward pass by the number of tokens; a multiplication and an addition are two.

    Products of matrices count, attention as a full square; experts count for the tokens that are sent to them.

    Args:
        model: of transformers.
        ids: int64 ``[blocks, length]``; attention costs more in longer blocks.
    """
    training, attention = model.training, model.config._attn_implementation
    has_experts = model._can_set_experts_implementation()
    experts = model.config._experts_implementation if has_experts else None
    # What is written out in products is counted to the last one.
    model.eval()
    model.set_attn_implementation("eager")
    if experts is not None:
        model.set_experts_implementation("eager")
    try:
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        model.train(training)
        model.set_attn_implementation(attention)
        if experts is not None:
            model.set_experts_implementation(experts)
    return float(counter.get_total_flops() / ids.numel())


def training_flops_per_token(model: Any, ids: Tensor) -> float:
    """Forward and backward pass; see `forward_flops_per_token`."""
    return (1 + BACKWARD_FACTOR) * forward_flops_per_token(model, ids)
