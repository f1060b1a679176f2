"""What a token costs, counted in a pass of the model itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from moe.experts import Experts
from runtime.dispatch import dispatch

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
    counter = FlopCounterMode(display=False)
    of_experts = _ExpertsOfOurs(counter)
    layers = [module for module in model.modules() if isinstance(module, Experts)]
    handles = [layer.register_forward_pre_hook(of_experts.enter) for layer in layers]
    handles += [layer.register_forward_hook(of_experts.leave) for layer in layers]
    try:
        with counter:
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
        model.set_attn_implementation(attention)
        if experts is not None:
            model.set_experts_implementation(experts)
    return (counter.get_total_flops() + of_experts.correction) / ids.numel()


def training_flops_per_token(model: Any, ids: Tensor) -> float:
    """Forward and backward pass; see `forward_flops_per_token`."""
    return (1 + BACKWARD_FACTOR) * forward_flops_per_token(model, ids)


class _ExpertsOfOurs:
    """Experts whose kernels torch does not see, and which try out what is fastest: counted by their entries."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self.correction = 0
        self._counter = counter

    def enter(self, module: Any, inputs: Any) -> None:
        del module, inputs
        self.correction += self._counter.get_total_flops()

    def leave(self, experts: Experts, inputs: Any, output: Any) -> None:
        del output
        _, gates, capacity = inputs
        entries = len(dispatch(gates, capacity).rows)
        self.correction += 2 * entries * (experts.up[0].numel() + experts.down[0].numel())
        self.correction -= self._counter.get_total_flops()
