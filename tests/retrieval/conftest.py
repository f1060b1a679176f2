"""A tiny encoder with a fixed vocabulary, for tests of the index that need no language."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
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
