"""Qwen2 and Qwen2.5, which have biases on queries, keys and values: to Qwen2-MoE."""

from __future__ import annotations

from moe.upcycle.architectures.llama_block import COPIES, FEED_FORWARD, LEFT_OUT
from moe.upcycle.rules import Architecture
from moe.upcycle.targets import qwen2_moe

ARCHITECTURE = Architecture(
    model_type="qwen2",
    copies=COPIES,
    feed_forward=FEED_FORWARD,
    targets=(qwen2_moe.TARGET,),
    left_out=LEFT_OUT,
)
