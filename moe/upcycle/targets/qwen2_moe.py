"""Qwen2-MoE: experts in any layers, biases on queries, keys and values or none, and a shared expert.

The shared expert is added to what the routed experts give, so it is written as zeros: then it gives exactly
nothing, and no gradient ever reaches it.
"""

from __future__ import annotations

from typing import Any

from moe.upcycle.plan import UpcyclePlan
from moe.upcycle.rules import Copy, ExpertTensor, LeaveOut, SparseLayer, Target
from moe.upcycle.targets.decoder import Attention, shared_fields

SHARED_WIDTH = 128
"""Inner width of the shared expert that gives nothing: small, and what quantisation in groups and splits over
devices divide. Without one (width 0) other programs fail to load the folder."""

_BLOCK = "model.layers.{layer}.mlp."


def _refusal(config: Any, plan: UpcyclePlan) -> str | None:
    if plan.attention:
        return "has dense attention"
    if Attention.of(config).qk_norm:
        return "does not normalise queries and keys"
    return None


def _config(config: Any, plan: UpcyclePlan, width: int) -> dict[str, Any]:
    attention = Attention.of(config)
    windows = [window for window in attention.windows if window is not None]
    sparse = plan.sparse_layers(config.num_hidden_layers)
    return shared_fields(config) | {
        "qkv_bias": attention.qkv_bias,
        "use_sliding_window": bool(windows),
        "sliding_window": windows[0] if windows else None,
        # every layer's type is given below, so this decides nothing
        "max_window_layers": config.num_hidden_layers,
        "layer_types": [
            "full_attention" if window is None else "sliding_attention" for window in attention.windows
        ],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [layer for layer in range(config.num_hidden_layers) if layer not in sparse],
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": SHARED_WIDTH,
        "num_experts": plan.experts,
        "num_experts_per_tok": plan.top_k,
        "norm_topk_prob": True,
    }


def _zeros(config: Any) -> list[tuple[str, tuple[int, ...]]]:
    width = config.hidden_size
    return [
        (_BLOCK + "shared_expert.gate_proj.weight", (SHARED_WIDTH, width)),
        (_BLOCK + "shared_expert.up_proj.weight", (SHARED_WIDTH, width)),
        (_BLOCK + "shared_expert.down_proj.weight", (width, SHARED_WIDTH)),
        (_BLOCK + "shared_expert_gate.weight", (1, width)),
    ]


def _notes(config: dict[str, Any]) -> list[str]:
    notes = []
    if config["use_sliding_window"]:
        notes.append(
            "the sliding window is kept by the eager and sdpa attention of transformers; its flash attention "
            "ignores the window of Qwen2-MoE"
        )
    if config["head_dim"] * config["num_attention_heads"] != config["hidden_size"]:
        notes.append(
            f"heads are {config['head_dim']} wide, which transformers reads from config.json; other programs "
            "may expect hidden_size / num_attention_heads in Qwen2-MoE and refuse the folder"
        )
    return notes


TARGET = Target(
    model_type="qwen2_moe",
    layer=SparseLayer(
        router=_BLOCK + "gate.weight",
        experts=(
            ExpertTensor(_BLOCK + "experts.{expert}.gate_proj.weight", ("gate",)),
            ExpertTensor(_BLOCK + "experts.{expert}.up_proj.weight", ("up",)),
            ExpertTensor(_BLOCK + "experts.{expert}.down_proj.weight", ("down",)),
        ),
        zeros=_zeros,
    ),
    refusal=_refusal,
    config=_config,
    copies=(Copy(r"model\.layers\.\d+\.self_attn\.[qkv]_proj\.bias"),),
    left_out=(
        LeaveOut(
            r"model\.layers\.\d+\.self_attn\.o_proj\.bias",
            "no architecture with experts has a bias after attention without normalising queries and keys",
            only_zero=True,
        ),
    ),
    notes=_notes,
)
