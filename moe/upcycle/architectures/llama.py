"""Llama: to Mixtral, or to Qwen2-MoE where some layers stay dense or queries, keys and values have biases;
with experts of attention to JetMoE.
"""

from __future__ import annotations

from moe.upcycle.architectures.llama_block import ATTENTION, COPIES, FEED_FORWARD, LEFT_OUT
from moe.upcycle.rules import Architecture, LeaveOut
from moe.upcycle.targets import jetmoe, mixtral, qwen2_moe

ARCHITECTURE = Architecture(
    model_type="llama",
    copies=COPIES,
    feed_forward=FEED_FORWARD,
    attention=ATTENTION,
    targets=(mixtral.TARGET, qwen2_moe.TARGET, jetmoe.TARGET),
    left_out=(
        *LEFT_OUT,
        LeaveOut(
            r"model\.layers\.\d+\.mlp\.(gate|up|down)_proj\.bias",
            "experts of Mixtral, Qwen2-MoE and JetMoE have no biases of neurons",
            only_zero=True,
        ),
    ),
)
