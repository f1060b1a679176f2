"""ModernBERT: to our ModernBERT with experts."""

from __future__ import annotations

from typing import Any

from moe.upcycle.rules import Architecture, Copy, FeedForward, Part
from moe.upcycle.targets.moe_encoder import encoder_target


def _refusal(config: Any) -> str | None:
    if config.mlp_bias:
        return "takes experts without biases"
    return "has no dropout inside experts (mlp_dropout)" if config.mlp_dropout else None


def _rules(prefix: str, auto_class: str, bare: Architecture | None = None) -> Architecture:
    start = prefix.replace(".", r"\.")
    of_layer = start + r"layers\.\d+\."
    block = prefix + "layers.{layer}."
    return Architecture(
        model_type="modernbert",
        copies=(
            Copy(start + r"embeddings\.(tok_embeddings\.weight|norm\.(weight|bias))"),
            Copy(of_layer + r"attn\.(Wqkv|Wo)\.(weight|bias)"),
            Copy(of_layer + r"(attn|mlp)_norm\.(weight|bias)"),
            Copy(start + r"final_norm\.(weight|bias)"),
            Copy(r"head\.(dense|norm)\.(weight|bias)"),
            Copy(r"decoder\.(weight|bias)"),
        ),
        feed_forward=FeedForward(
            parts={
                # Wi holds both; the activation goes to its upper half
                "gate": Part(block + "mlp.Wi.weight", block=0, blocks=2),
                "up": Part(block + "mlp.Wi.weight", block=1, blocks=2),
                "down": Part(block + "mlp.Wo.weight"),
            },
            module=block + "mlp",
        ),
        targets=(encoder_target("moe_modernbert", block + "moe", gated=True, bias=False, refusal=_refusal),),
        auto_class=auto_class,
        prefix=prefix,
        bare=bare,
    )


ARCHITECTURE = _rules("model.", "AutoModelForMaskedLM", bare=_rules("", "AutoModel"))
