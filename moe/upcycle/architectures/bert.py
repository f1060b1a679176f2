"""BERT: to our BERT with experts."""

from __future__ import annotations

from typing import Any

from moe.upcycle.rules import Architecture, Copy, FeedForward, LeaveOut, Part
from moe.upcycle.targets.moe_encoder import encoder_target


def _refusal(config: Any) -> str | None:
    return "is no decoder" if config.is_decoder or config.add_cross_attention else None


def _rules(prefix: str, auto_class: str, bare: Architecture | None = None) -> Architecture:
    of_layer = prefix.replace(".", r"\.") + r"encoder\.layer\.\d+\."
    of_embeddings = prefix.replace(".", r"\.") + r"embeddings\."
    block = prefix + "encoder.layer.{layer}."
    norm = rf"((?:{of_embeddings}|{of_layer}(?:attention\.)?output\.|cls\.predictions\.transform\.)LayerNorm)"
    return Architecture(
        model_type="bert",
        copies=(
            Copy(of_embeddings + r"(word|position|token_type)_embeddings\.weight"),
            Copy(of_layer + r"attention\.(self\.(query|key|value)|output\.dense)\.(weight|bias)"),
            Copy(norm + r"\.(weight|bias)"),
            # names of 2018, which transformers still reads
            Copy(norm + r"\.gamma", r"\1.weight"),
            Copy(norm + r"\.beta", r"\1.bias"),
            Copy(prefix.replace(".", r"\.") + r"pooler\.dense\.(weight|bias)"),
            Copy(r"cls\.predictions\.(bias|decoder\.(weight|bias)|transform\.dense\.(weight|bias))"),
        ),
        feed_forward=FeedForward(
            parts={
                "up": Part(block + "intermediate.dense.weight"),
                "up_bias": Part(block + "intermediate.dense.bias"),
                "down": Part(block + "output.dense.weight"),
                "down_bias": Part(block + "output.dense.bias"),
            },
            module=block + "intermediate",
        ),
        targets=(encoder_target("moe_bert", block + "moe", gated=False, bias=True, refusal=_refusal),),
        left_out=(
            LeaveOut(of_embeddings + r"(position|token_type)_ids", "it is computed from the configuration"),
            LeaveOut(r"cls\.seq_relationship\.(weight|bias)", "a masked language model predicts no sentence"),
        ),
        auto_class=auto_class,
        complete=False,  # for the sake of the old names; the check loads the model anyway
        prefix=prefix,
        bare=bare,
    )


ARCHITECTURE = _rules("bert.", "AutoModelForMaskedLM", bare=_rules("", "AutoModel"))
