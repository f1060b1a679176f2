"""Qwen3-MoE: experts in any layers, queries and keys normalised, no shared expert."""

from __future__ import annotations

from typing import Any

from moe.upcycle.plan import UpcyclePlan
from moe.upcycle.rules import Copy, ExpertTensor, SparseLayer, Target
from moe.upcycle.targets.decoder import Attention, shared_fields

_BLOCK = "model.layers.{layer}.mlp."


def _refusal(config: Any, plan: UpcyclePlan) -> str | None:
    attention = Attention.of(config)
    if plan.attention:
        return "has dense attention"
    if not attention.qk_norm:
        return "normalises queries and keys"
    if not attention.same_window:
        return "has the same attention window in every layer"
    return None


def _config(config: Any, plan: UpcyclePlan, width: int) -> dict[str, Any]:
    attention = Attention.of(config)
    sparse = plan.sparse_layers(config.num_hidden_layers)
    return shared_fields(config) | {
        "attention_bias": attention.output_bias,
        "use_sliding_window": attention.window is not None,
        "sliding_window": attention.window,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [layer for layer in range(config.num_hidden_layers) if layer not in sparse],
        "moe_intermediate_size": width,
        "num_experts": plan.experts,
        "num_experts_per_tok": plan.top_k,
        "norm_topk_prob": True,
    }


TARGET = Target(
    model_type="qwen3_moe",
    layer=SparseLayer(
        router=_BLOCK + "gate.weight",
        experts=(
            ExpertTensor(_BLOCK + "experts.{expert}.gate_proj.weight", ("gate",)),
            ExpertTensor(_BLOCK + "experts.{expert}.up_proj.weight", ("up",)),
            ExpertTensor(_BLOCK + "experts.{expert}.down_proj.weight", ("down",)),
        ),
    ),
    refusal=_refusal,
    config=_config,
    copies=(
        Copy(r"model\.layers\.\d+\.self_attn\.[qkvo]_proj\.bias"),
        Copy(r"model\.layers\.\d+\.self_attn\.[qk]_norm\.weight"),
    ),
)
