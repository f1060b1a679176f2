"""Mixtral: experts in every layer, gates renormalised, no biases."""

from __future__ import annotations

from typing import Any

from moe.upcycle.plan import UpcyclePlan
from moe.upcycle.rules import ExpertTensor, SparseLayer, Target
from moe.upcycle.targets.decoder import Attention, shared_fields

_BLOCK = "model.layers.{layer}.block_sparse_moe."


def _refusal(config: Any, plan: UpcyclePlan) -> str | None:
    attention = Attention.of(config)
    if plan.attention:
        return "has dense attention"
    if len(plan.sparse_layers(config.num_hidden_layers)) < config.num_hidden_layers:
        return "has experts in every layer"
    if attention.qkv_bias:
        return "has no biases in its attention"
    if attention.qk_norm:
        return "does not normalise queries and keys"
    if not attention.same_window:
        return "has the same attention window in every layer"
    return None


def _config(config: Any, plan: UpcyclePlan, width: int) -> dict[str, Any]:
    return shared_fields(config) | {
        "intermediate_size": width,
        "sliding_window": Attention.of(config).window,
        "num_local_experts": plan.experts,
        "num_experts_per_tok": plan.top_k,
    }


TARGET = Target(
    model_type="mixtral",
    layer=SparseLayer(
        router=_BLOCK + "gate.weight",
        experts=(
            ExpertTensor(_BLOCK + "experts.{expert}.w1.weight", ("gate",)),
            ExpertTensor(_BLOCK + "experts.{expert}.w3.weight", ("up",)),
            ExpertTensor(_BLOCK + "experts.{expert}.w2.weight", ("down",)),
        ),
    ),
    refusal=_refusal,
    config=_config,
)
