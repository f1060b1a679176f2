"""Tiny decoders of transformers, and folders of them with a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

VOCABULARY = 64


def tiny_model(model_type: str, seed: int = 0, context: int = 48) -> Any:
    import torch
    import transformers

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 24,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_experts_per_tok": 2,
        "max_position_embeddings": context,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    sizes |= {"num_local_experts": 4} if model_type == "mixtral" else {"num_experts": 4}
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # as they come, all logits are nearly equal
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("decoder")
    save_tiny_decoder(path)
    return path


def save_tiny_decoder(path: Path, chat_template: str | None = None, context: int = 48) -> None:
    """A Mixtral with a tokenizer of bytes."""
    import tokenizers
    import transformers

    tiny_model("mixtral", context=context).save_pretrained(path)
    # A byte is a token, so that a character of two bytes comes in two of them.
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    kept = [letter for letter in alphabet if letter in "Ġabcdefghijklmnopqrstuvwxyz.,!?'ĊÃ©ª¼"]
    kept = ["<end>", *kept, *(letter for letter in alphabet if letter not in kept)][:VOCABULARY]
    vocabulary = {token: index for index, token in enumerate(kept)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<end>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.chat_template = chat_template
    fast.save_pretrained(path)
