"""Models of transformers whose experts have weights of 8 or 4 bits, to run on a processor."""

from __future__ import annotations

from typing import Any

from moe.transformers_experts import QUANTISED, plain_activation
from runtime.errors import UsageError
from runtime.expert_weights import DEFAULT_GROUP, quantise_experts


def quantise_model(model: Any, *, bits: int = 4, group: int = DEFAULT_GROUP) -> int:
    """Round the weights of all experts in place, layer by layer, and free what they were.

    The model then runs and generates, with ``experts_implementation="lexpert"``, but can be neither trained nor
    saved. What is not an expert stays as it is.

    Args:
        model: of transformers, on the CPU.
        bits: 8, with one scale for each row, or 4, with one for each `group` columns.
        group: 32 or 128.

    Returns:
        The bytes of the rounded experts.

    Raises:
        UsageError: there are no experts, they run on something else, they are not plain feed-forward blocks, or
            `bits` or `group` are others.
    """
    layers = [module for module in model.modules() if hasattr(module, "_is_expert_parallel")]
    if not layers:
        raise UsageError(f"{type(model).__name__} has no experts whose weights could be rounded")
    for experts in layers:
        if plain_activation(experts) is None:
            raise UsageError(
                f"{type(experts).__name__} does more than a feed-forward block, which cannot be rounded to {bits} bits"
            )
        if experts.config._experts_implementation != "lexpert":
            raise UsageError(
                f"the experts run on {experts.config._experts_implementation!r}; load the model with "
                "experts_implementation='lexpert' to round them"
            )
    num_bytes = 0
    for experts in layers:
        up_name = "gate_up_proj" if experts.has_gate else "up_proj"
        rounded = [
            quantise_experts(getattr(experts, name).detach(), bits=bits, group=group)
            for name in (up_name, "down_proj")
        ]
        setattr(experts, QUANTISED, rounded)
        for name in (up_name, "down_proj"):
            # An empty parameter keeps its name, dtype and device for whoever asks.
            parameter = getattr(experts, name)
            parameter.data = parameter.data.new_empty(0)
        num_bytes += sum(weights.num_bytes for weights in rounded)
    model.requires_grad_(False)
    return num_bytes
