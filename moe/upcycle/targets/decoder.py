"""What a target must know of a dense decoder: the fields that all decoders share, and how its attention differs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_SHARED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "rope_parameters",
    "attention_dropout",
    "dtype",
)


def shared_fields(config: Any) -> dict[str, Any]:
    """Fields of a dense configuration that mean the same in every decoder, and the width of a head."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {name: getattr(config, name) for name in _SHARED} | {"head_dim": head_dim}


def query_groups(config: Any) -> int:
    """Query heads for each key head."""
    return int(config.num_attention_heads // config.num_key_value_heads)


@dataclass(frozen=True, slots=True)
class Attention:
    """How the attention of a decoder differs from the plainest.

    Attributes:
        windows: the sliding window of each layer; None is full attention.
    """

    qkv_bias: bool
    output_bias: bool
    qk_norm: bool
    windows: tuple[int | None, ...]

    @classmethod
    def of(cls, config: Any) -> Attention:
        """Read a dense configuration of Llama, Mistral, Qwen2 or Qwen3."""
        biased = bool(getattr(config, "attention_bias", False))
        window = getattr(config, "sliding_window", None)
        types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
        return cls(
            qkv_bias=biased or config.model_type == "qwen2",
            output_bias=biased,
            qk_norm=config.model_type == "qwen3",
            windows=tuple(window if kind == "sliding_attention" else None for kind in types),
        )

    @property
    def window(self) -> int | None:
        """The window of all layers, where they agree."""
        return self.windows[0]

    @property
    def same_window(self) -> bool:
        return len(set(self.windows)) == 1
