"""Tiny language models with a tokenizer of words, and a text to train them on."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCABULARY = 64
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"w{number}" for number in range(VOCABULARY - len(SPECIAL))]

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 24,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
}

MakeFolder = Callable[..., Path]


def tiny_decoder(model_type: str, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    sizes = dict(SIZES)
    if model_type in ("mixtral", "jetmoe"):
        sizes["num_local_experts"] = 4
    elif model_type != "llama":
        sizes["num_experts"] = 4
    if model_type == "jetmoe":
        sizes |= {"kv_channels": 8, "num_key_value_heads": 2}
    config = transformers.AutoConfig.for_model(model_type, **sizes | changes)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def tiny_encoder(seed: int = 0, **changes: Any) -> Any:
    import moe.models  # noqa: F401 - registers the model types

    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "num_experts": 4,
        "pad_token_id": 0,
    }
    config = transformers.AutoConfig.for_model("moe_bert", **sizes | changes)
    return transformers.AutoModelForMaskedLM.from_config(config).eval()


def word_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word: place for place, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", bos_token="[CLS]", eos_token="[SEP]",
    )  # fmt: skip


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> MakeFolder:
    """Saves a model with the tokenizer, once: ``folder_of("mixtral")``."""
    root = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {}

    def make(model_type: str, **changes: Any) -> Path:
        key = repr((model_type, sorted(changes.items())))
        if key not in made:
            made[key] = root / f"{model_type}-{len(made)}"
            model = (
                tiny_encoder(**changes) if model_type == "moe_bert" else tiny_decoder(model_type, **changes)
            )
            model.save_pretrained(made[key])
            word_tokenizer().save_pretrained(made[key])
        return made[key]

    return make


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 3,000 words in documents, each word likely to be followed by the next one."""
    draw = random.Random(0)
    path: Path = tmp_path_factory.mktemp("text") / "text.txt"
    documents = []
    for _ in range(100):
        word, words = draw.randrange(len(WORDS)), []
        for _ in range(draw.randrange(20, 40)):
            words.append(WORDS[word])
            word = (word + 1) % len(WORDS) if draw.random() < 0.8 else draw.randrange(len(WORDS))
        documents.append(" ".join(words))
    path.write_text("\n\n".join(documents) + "\n", "utf-8")
    return path
