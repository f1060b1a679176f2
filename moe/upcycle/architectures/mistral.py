"""Mistral: to Mixtral, sliding window included, or to Qwen2-MoE where some layers stay dense."""

from __future__ import annotations

from moe.upcycle.architectures.llama_block import COPIES, FEED_FORWARD, LEFT_OUT
from moe.upcycle.rules import Architecture
from moe.upcycle.targets import mixtral, qwen2_moe

ARCHITECTURE = Architecture(
    model_type="mistral",
    copies=COPIES,
    feed_forward=FEED_FORWARD,
    targets=(mixtral.TARGET, qwen2_moe.TARGET),
    left_out=LEFT_OUT,
)
