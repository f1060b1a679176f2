"""Text from a decoder of transformers, token by token, its experts computed by ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from moe.generation.decoder_folder import DecoderFolder
    from moe.generation.sampling import Sampling
    from moe.generation.text import Generated, generate_text
    from moe.generation.tokens import generate_tokens

__all__ = ["DecoderFolder", "Generated", "Sampling", "generate_text", "generate_tokens"]

_HOMES = {
    "DecoderFolder": "moe.generation.decoder_folder",
    "Generated": "moe.generation.text",
    "Sampling": "moe.generation.sampling",
    "generate_text": "moe.generation.text",
    "generate_tokens": "moe.generation.tokens",
}

__getattr__ = lazy_exports(__name__, _HOMES)
