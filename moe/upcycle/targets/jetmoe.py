"""JetMoE: experts of attention as well as of the feed-forward block, in every layer (Shen et al. 2024).

An expert of attention is a query projection and an output projection; keys and values are shared. The gates of
the experts that a token is sent to sum to 1 and weigh what their output projections give.
"""

from __future__ import annotations

from typing import Any

from moe.upcycle.plan import UpcyclePlan
from moe.upcycle.rules import AttentionExperts, ExpertTensor, SparseLayer, Target
from moe.upcycle.targets.decoder import Attention, query_groups, shared_fields

RMS_NORM_EPS = 1e-6
"""What transformers' JetMoE has in its layers, whatever its configuration says."""

_LAYER = "model.layers.{layer}."


def _refusal(config: Any, plan: UpcyclePlan) -> str | None:
    attention = Attention.of(config)
    groups = query_groups(config)
    if not plan.attention:
        return "has no dense attention"
    if len(plan.sparse_layers(config.num_hidden_layers)) < config.num_hidden_layers:
        return "has experts in every layer"
    if attention.qkv_bias:
        return "has no biases in its queries and keys"
    if attention.qk_norm:
        return "does not normalise queries and keys"
    if set(attention.windows) != {None}:
        return "has no attention window"
    if config.rms_norm_eps != RMS_NORM_EPS:
        return (
            f"normalises with rms_norm_eps {RMS_NORM_EPS:g} and the checkpoint with {config.rms_norm_eps:g}"
        )
    if plan.experts % groups or plan.top_k % groups:
        return (
            f"has one query head an expert for each key, so that the {groups} query heads of each key here take "
            f"{groups} experts; choose experts and a top-k that are multiples of {groups}"
        )
    return None


def _config(config: Any, plan: UpcyclePlan, width: int) -> dict[str, Any]:
    fields = shared_fields(config)
    fields["activation_function"] = fields.pop("hidden_act")
    fields["kv_channels"] = fields.pop("head_dim")
    del fields["num_attention_heads"]  # it is computed from the top-k
    return fields | {
        "intermediate_size": width,
        "num_local_experts": plan.experts,
        "num_experts_per_tok": plan.top_k,
    }


def _zeros(config: Any) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (_LAYER + "mlp.bias", (config.hidden_size,)),
        (_LAYER + "self_attention.experts.bias", (config.hidden_size,)),
    ]


TARGET = Target(
    model_type="jetmoe",
    layer=SparseLayer(
        router=_LAYER + "mlp.router.layer.weight",
        experts=(
            ExpertTensor(_LAYER + "mlp.input_linear.weight", ("gate", "up")),
            ExpertTensor(_LAYER + "mlp.output_linear.weight", ("down",)),
        ),
        zeros=_zeros,
        attention=AttentionExperts(
            router=_LAYER + "self_attention.experts.router.layer.weight",
            query=_LAYER + "self_attention.experts.input_linear.weight",
            output=_LAYER + "self_attention.experts.output_linear.weight",
            key_value=_LAYER + "self_attention.kv_proj.weight",
        ),
    ),
    refusal=_refusal,
    config=_config,
    notes=lambda _: ["JetMoE is known to transformers; few other programs load it"],
)
