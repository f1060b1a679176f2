"""Mistral: to Mixtral, sliding window included, or to Qwen2-MoE where some layers stay dense; with experts of attention
to JetMoE, which has no window.
"""

from __future__ import annotations

from moe.upcycle.architectures.llama_block import ATTENTION, COPIES, FEED_FORWARD, LEFT_OUT
from moe.upcycle.rules import Architecture
from moe.upcycle.targets import jetmoe, mixtral, qwen2_moe

ARCHITECTURE = Architecture(
    model_type="mistral",
    copies=COPIES,
    feed_forward=FEED_FORWARD,
    attention=ATTENTION,
    targets=(mixtral.TARGET, qwen2_moe.TARGET, jetmoe.TARGET),
    left_out=LEFT_OUT,
)
