"""Encoders with experts of our own (`moe.models`): experts in any layers, biases or none, stacked tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moe.upcycle.plan import UpcyclePlan
from moe.upcycle.rules import ExpertTensor, SparseLayer, Target

OF_THE_MODEL_TYPE = ("model_type", "architectures", "transformers_version", "_name_or_path", "auto_map")
"""Fields of a configuration that an encoder with experts and its dense one do not share."""

Refusal = Callable[[Any], str | None]


def encoder_target(
    model_type: str, block: str, *, gated: bool, bias: bool, refusal: Refusal = lambda _: None
) -> Target:
    """The target of a dense encoder.

    Args:
        block: name of the layer of experts in the sparse checkpoint, with ``{layer}``.
        gated: whether an expert has a gate.
        bias: whether its projections have biases.
        refusal: from the dense configuration, what the model of `model_type` cannot hold; None where it can.
    """
    up = "gate_up_proj" if gated else "up_proj"
    experts = [
        ExpertTensor(f"{block}.experts.{up}", ("gate", "up") if gated else ("up",)),
        ExpertTensor(f"{block}.experts.down_proj", ("down",)),
    ]
    if bias:
        experts += [
            ExpertTensor(f"{block}.experts.{up}_bias", ("gate_bias", "up_bias") if gated else ("up_bias",)),
            ExpertTensor(f"{block}.experts.down_proj_bias", ("down_bias",)),
        ]
    return Target(
        model_type=model_type,
        layer=SparseLayer(router=f"{block}.router.gate.weight", experts=tuple(experts)),
        refusal=lambda config, plan: "has dense attention" if plan.attention else refusal(config),
        config=_config,
        notes=lambda _: [
            "transformers loads it after import moe.models, and SparseEncoder.load without that"
        ],
    )


def _config(config: Any, plan: UpcyclePlan, width: int) -> dict[str, Any]:
    import moe.models  # noqa: F401 - so that transformers knows the model type that this is for

    dense = {name: value for name, value in config.to_dict().items() if name not in OF_THE_MODEL_TYPE}
    return dense | {
        "num_experts": plan.experts,
        "moe_layers": plan.sparse_layers(config.num_hidden_layers),
        "moe_intermediate_size": width,
        "router": "top_k",
        "router_options": {"top_k": plan.top_k},
    }
