"""A Llama drawn at random, with a tokenizer of its own, to be trained from nothing."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runtime.output_folder import new_folder

START, END = "<s>", "</s>"


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Sizes of a decoder; 33.7 million parameters as they are, of which 8.4 are the embeddings.

    Attributes:
        inner: neurons of a feed-forward block.
        vocabulary: tokens, 258 at least: one for each byte, start and end.
    """

    layers: int = 8
    hidden: int = 512
    inner: int = 1376
    heads: int = 8
    vocabulary: int = 16384
    positions: int = 1024


def draw_decoder(out: Path, text: Path, shape: DecoderShape, seed: int) -> None:
    """Make a folder of transformers; it appears when it is whole.

    The tokenizer is byte-level BPE, learned from the text; embeddings are tied.

    Raises:
        ConflictError: `out` exists.
    """
    import transformers

    with new_folder(out) as folder:
        tokenizer = learned_tokenizer(text, shape)
        config = transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=shape.positions,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        torch.manual_seed(seed)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def learned_tokenizer(text: Path, shape: DecoderShape) -> Any:
    """A fast tokenizer of transformers; a short text gives fewer tokens than are asked for."""
    import tokenizers
    import transformers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=shape.vocabulary,
        special_tokens=[START, END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_lines(text), trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=START, eos_token=END, model_max_length=shape.positions
    )


def _lines(text: Path) -> Iterator[str]:
    with (
        gzip.open(text, "rt", encoding="utf-8")
        if text.suffix == ".gz"
        else text.open(encoding="utf-8") as file
    ):
        yield from file
