"""What Llama and its descendants have in common: names of parameters, and a gated feed-forward block."""

from __future__ import annotations

from moe.upcycle.rules import AttentionProjections, Copy, FeedForward, LeaveOut, Part

COPIES = (
    Copy(r"model\.embed_tokens\.weight"),
    Copy(r"model\.norm\.weight"),
    Copy(r"lm_head\.weight"),
    Copy(r"model\.layers\.\d+\.(input|post_attention)_layernorm\.weight"),
    Copy(r"model\.layers\.\d+\.self_attn\.[qkvo]_proj\.weight"),
)

FEED_FORWARD = FeedForward(
    parts={
        "gate": Part("model.layers.{layer}.mlp.gate_proj.weight"),
        "up": Part("model.layers.{layer}.mlp.up_proj.weight"),
        "down": Part("model.layers.{layer}.mlp.down_proj.weight"),
    },
    module="model.layers.{layer}.mlp",
)

ATTENTION = AttentionProjections(
    query="model.layers.{layer}.self_attn.q_proj.weight",
    key="model.layers.{layer}.self_attn.k_proj.weight",
    value="model.layers.{layer}.self_attn.v_proj.weight",
    output="model.layers.{layer}.self_attn.o_proj.weight",
)

LEFT_OUT = (
    # old checkpoints carry them; every model computes them from its configuration
    LeaveOut(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", "it is computed from the configuration"),
)
