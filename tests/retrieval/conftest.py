"""Encoders small enough for tests: one with a fixed vocabulary, for tests of the index that need no language,
and masked language models with random weights and a vocabulary of a few dozen word pieces."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from retrieval.encoders import catalogue
from retrieval.encoders.encoder import Advance, SparseEncoder, Vocabulary
from runtime.activations import SparseActivations


class NumberVocabulary(Vocabulary):
    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def term(self, unit: int) -> str:
        return f"u{unit}"

    def find(self, terms: Sequence[str]) -> list[int]:
        known = {self.term(unit): unit for unit in range(self._size)}
        return [known.get(term, -1) for term in terms]


class NumberEncoder(SparseEncoder):
    """Texts such as ``"3:0.5 7:2"`` are their own vectors."""

    family = "numbers"

    def __init__(self, num_units: int = 16) -> None:
        self._vocabulary = NumberVocabulary(num_units)

    @property
    def vocabulary(self) -> NumberVocabulary:
        return self._vocabulary

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"numbers {len(self._vocabulary)}".encode()).hexdigest()

    def encode_documents(self, texts: Sequence[str], advance: Advance | None = None) -> SparseActivations:
        rows = []
        for text in texts:
            pairs = [pair.split(":") for pair in text.split()]
            rows.append(([int(unit) for unit, _ in pairs], [float(weight) for _, weight in pairs]))
        if advance:
            advance(len(texts))
        return SparseActivations.from_rows(rows, len(self._vocabulary)).coalesce()

    def encode_queries(self, texts: Sequence[str]) -> SparseActivations:
        return self.encode_documents(texts)

    def token_lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        described = {"family": self.family, "num_units": len(self._vocabulary)}
        (folder / catalogue.ENCODER_FILE).write_text(json.dumps(described))

    @classmethod
    def from_folder(cls, folder: Path, **options: Any) -> Self:
        return cls(json.loads((folder / catalogue.ENCODER_FILE).read_text())["num_units"], **options)


@pytest.fixture
def number_encoder(monkeypatch: pytest.MonkeyPatch) -> NumberEncoder:
    """The encoder, known to the catalogue of families for the length of one test."""
    families = {**catalogue.FAMILIES, "numbers": f"{__name__}:NumberEncoder"}
    monkeypatch.setattr(catalogue, "FAMILIES", families)
    real = catalogue.family_class
    monkeypatch.setattr(
        catalogue, "family_class", lambda family: NumberEncoder if family == "numbers" else real(family)
    )
    return NumberEncoder()


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "a", "how", "do", "and", "of", "to", "in", "vaccines", "work", "virus", "immune", "system"]
WORDS += ["cell", "body", "train", "learns", "protect", "against"]
PIECES = [chr(ord("a") + i) for i in range(26)] + [f"##{chr(ord('a') + i)}" for i in range(26)]
TOKENS = SPECIAL + WORDS + ["##s", "##ing", ".", ",", "?"] + [p for p in PIECES if p not in ("a", "##s")]

TEXTS = [
    "How do vaccines work?",
    "the virus",
    "Vaccines train the immune system, and the immune system learns to protect the body against the virus. "
    * 3,
    "a cell in a body of cells",
    "zebra crossing, working of the virus",
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Texts of different lengths, one longer than the small models can take (40 tokens)."""
    return list(TEXTS)


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece({t: i for i, t in enumerate(TOKENS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def make_language_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a small ``*ForMaskedLM`` folder of an architecture, once, and return it."""
    made: dict[tuple[str, int], Path] = {}

    def make(architecture: str = "bert", seed: int = 0) -> Path:
        if (architecture, seed) not in made:
            folder = tmp_path_factory.mktemp(architecture)
            _write_model(architecture, seed, folder)
            made[architecture, seed] = folder
        return made[architecture, seed]

    return make


def _write_model(architecture: str, seed: int, folder: Path) -> None:
    import torch
    import transformers

    width = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape = {**width, "vocab_size": len(TOKENS), "initializer_range": 0.4, "max_position_embeddings": 40}
    configs = {
        "bert": lambda: transformers.BertConfig(**shape),
        "distilbert": lambda: transformers.DistilBertConfig(
            vocab_size=len(TOKENS), dim=16, hidden_dim=24, n_layers=2, n_heads=2, max_position_embeddings=40,
            initializer_range=0.4,
        ),
        "roberta": lambda: transformers.RobertaConfig(**shape, pad_token_id=0),
        "modernbert": lambda: transformers.ModernBertConfig(
            **shape, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3
        ),
        "albert": lambda: transformers.AlbertConfig(**shape, embedding_size=8),
        "mobilebert": lambda: transformers.MobileBertConfig(
            **shape, embedding_size=8, intra_bottleneck_size=16, true_hidden_size=16
        ),
    }  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.AutoModelForMaskedLM.from_config(configs[architecture]())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
    model.save_pretrained(folder)
    save_tokenizer(folder)
