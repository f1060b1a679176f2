"""DistilBERT: to our DistilBERT with experts."""

from __future__ import annotations

from moe.upcycle.rules import Architecture, Copy, FeedForward, Part
from moe.upcycle.targets.moe_encoder import encoder_target


def _rules(prefix: str, auto_class: str, bare: Architecture | None = None) -> Architecture:
    start = prefix.replace(".", r"\.")
    of_layer = start + r"transformer\.layer\.\d+\."
    block = prefix + "transformer.layer.{layer}."
    return Architecture(
        model_type="distilbert",
        copies=(
            Copy(start + r"embeddings\.(word|position)_embeddings\.weight"),
            Copy(start + r"embeddings\.LayerNorm\.(weight|bias)"),
            Copy(of_layer + r"attention\.(q|k|v|out)_lin\.(weight|bias)"),
            Copy(of_layer + r"(sa|output)_layer_norm\.(weight|bias)"),
            Copy(r"vocab_(transform|layer_norm|projector)\.(weight|bias)"),
        ),
        feed_forward=FeedForward(
            parts={
                "up": Part(block + "ffn.lin1.weight"),
                "up_bias": Part(block + "ffn.lin1.bias"),
                "down": Part(block + "ffn.lin2.weight"),
                "down_bias": Part(block + "ffn.lin2.bias"),
            },
            module=block + "ffn",
        ),
        targets=(encoder_target("moe_distilbert", block + "moe", gated=False, bias=True),),
        auto_class=auto_class,
        prefix=prefix,
        bare=bare,
    )


ARCHITECTURE = _rules("distilbert.", "AutoModelForMaskedLM", bare=_rules("", "AutoModel"))
