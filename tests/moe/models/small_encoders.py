"""Encoders small enough for tests, dense and with experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCABULARY = 64
WIDTH = 16
ARCHITECTURES = ("bert", "distilbert", "modernbert")


def shape_of(architecture: str) -> dict[str, Any]:
    """Keyword arguments of a configuration, dense or with experts: 4 layers, 24 positions, no dropout."""
    if architecture == "distilbert":
        return {
            "vocab_size": VOCABULARY,
            "dim": WIDTH,
            "hidden_dim": 24,
            "n_layers": 4,
            "n_heads": 2,
            "max_position_embeddings": 24,
            "initializer_range": 0.3,
            "dropout": 0.0,
            "attention_dropout": 0.0,
        }
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "max_position_embeddings": 24,
        "initializer_range": 0.3,
        "pad_token_id": 0,
    }
    if architecture == "modernbert":
        tokens = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
        return shape | tokens | {"local_attention": 8}
    return shape | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def dense_model(architecture: str, seed: int = 0) -> Any:
    """A masked language model of transformers with random weights and biases, in evaluation mode."""
    config = transformers.AutoConfig.for_model(architecture, **shape_of(architecture))
    return randomised(transformers.AutoModelForMaskedLM.from_config(config), seed).eval()


def moe_model(architecture: str, seed: int = 0, **fields: Any) -> Any:
    """The same with experts; 4 in the second and fourth layer where `fields` says nothing else."""
    import moe.models  # noqa: F401 - registers the model types

    fields = {"num_experts": 4} | fields
    if architecture == "sparse_mixer":  # whose defaults suit 14 layers
        fields = {"num_attention_layers": 1, "num_moe_layers": 2} | fields
    config = transformers.AutoConfig.for_model(f"moe_{architecture}", **shape_of(architecture), **fields)
    return randomised(transformers.AutoModelForMaskedLM.from_config(config), seed).eval()


def randomised(model: Any, seed: int) -> Any:
    """Draw what starts at 0 or 1 as well, so that no parameter can be forgotten without notice."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.3 + (1.0 if bool((parameter == 1).all()) else 0.0))
    return model


def save_tokenizer(folder: Path) -> None:
    """Words ``w0``, ``w1`` and so on, one token each, behind BERT's special ones."""
    words = [f"w{number}" for number in range(VOCABULARY - 5)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    transformers.BertTokenizer(str(folder / "vocab.txt"), model_max_length=24).save_pretrained(folder)


def three_sequences() -> dict[str, Any]:
    """Sequences of 9, 5 and 3 tokens, padded to 9 with ids that must not matter."""
    ids = torch.randint(3, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "attention_mask": (torch.arange(9) < torch.tensor([[9], [5], [3]])).long()}


def padded(batch: dict[str, Any], columns: int) -> dict[str, Any]:
    """The batch, padded further on the right with ids that must not matter."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    return {
        "input_ids": torch.cat([ids, torch.full((len(ids), columns), 7)], 1),
        "attention_mask": torch.cat([mask, torch.zeros(len(ids), columns, dtype=mask.dtype)], 1),
    }
