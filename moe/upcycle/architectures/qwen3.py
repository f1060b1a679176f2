"""Qwen3, which normalises queries and keys: to Qwen3-MoE."""

from __future__ import annotations

from moe.upcycle.architectures.llama_block import COPIES, FEED_FORWARD, LEFT_OUT
from moe.upcycle.rules import Architecture
from moe.upcycle.targets import qwen3_moe

ARCHITECTURE = Architecture(
    model_type="qwen3",
    copies=COPIES,
    feed_forward=FEED_FORWARD,
    targets=(qwen3_moe.TARGET,),
    left_out=LEFT_OUT,
)
