"""Vocabulary of a subword tokenizer (WordPiece, BPE, Unigram): units are token ids, terms are its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from retrieval.encoders.encoder import Vocabulary


class SubwordVocabulary(Vocabulary):
    """Tokens exactly as the tokenizer spells them: ``##ing`` in WordPiece, ``Ġthe`` in byte-level BPE.

    A model may have more outputs than its tokenizer has tokens (padded to a multiple of 64, say); such a unit
    is called ``[unit 50300]`` and can be found under that name.
    """

    def __init__(self, tokens: Mapping[str, int], num_units: int) -> None:
        """`tokens`: id of each token; ids from `num_units` on are out of the model's reach and left out."""
        self._units = {token: unit for token, unit in tokens.items() if unit < num_units}
        self._terms = [f"[unit {unit}]" for unit in range(num_units)]
        for token, unit in self._units.items():
            self._terms[unit] = token
        for unit, term in enumerate(self._terms):
            self._units.setdefault(term, unit)

    def __len__(self) -> int:
        return len(self._terms)

    def term(self, unit: int) -> str:
        return self._terms[unit]

    def find(self, terms: Sequence[str]) -> list[int]:
        return [self._units.get(term, -1) for term in terms]
