"""Which token of a text speaks for which term, for encoders that weigh tokens by one number each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.encoders.encoder import Vocabulary
from retrieval.encoders.subword_vocabulary import SubwordVocabulary
from runtime.activations import SparseActivations
from runtime.errors import FormatError, UsageError

CONTINUES = "##"
"""How a WordPiece token starts that goes on with a word."""


@dataclass(frozen=True, eq=False)
class TermPlaces:
    """Places of a batch's texts that speak for terms, in the order of the texts.

    Attributes:
        rows: int64 ``[entries]``, the text.
        positions: int64 ``[entries]``, the token in its text.
        units: int64 ``[entries]``, the term; may come more than once in a text.
        shares: float32 ``[entries]``: 1, or 1 / n where a word is spoken for by n terms.
    """

    rows: NDArray[np.int64]
    positions: NDArray[np.int64]
    units: NDArray[np.int64]
    shares: NDArray[np.float32]

    def chosen(self, kept: NDArray[Any]) -> TermPlaces:
        return TermPlaces(self.rows[kept], self.positions[kept], self.units[kept], self.shares[kept])

    def heaviest(self, weights: NDArray[np.float32], num_units: int) -> TermPlaces:
        """One place for each term of a text: that of the largest of `weights`, float32 ``[entries]``; of equal ones
        the first."""
        return self._one_each(np.lexsort((-weights, self.rows * num_units + self.units)), num_units)

    def first(self, num_units: int) -> TermPlaces:
        """One place for each term of a text: its first."""
        return self._one_each(np.argsort(self.rows * num_units + self.units, kind="stable"), num_units)

    def _one_each(self, order: NDArray[np.int64], num_units: int) -> TermPlaces:
        keys = (self.rows * num_units + self.units)[order]
        return self.chosen(order[np.diff(keys, prepend=-1) > 0])

    def activations(self, weights: NDArray[np.float32], num_rows: int, num_units: int) -> SparseActivations:
        """Rows of the terms with a weight above 0; places must be sorted by row and unit, and distinct.

        Args:
            weights: float32 ``[entries]``.
        """
        lit = weights > 0
        indptr = np.zeros(num_rows + 1, np.int64)
        np.cumsum(np.bincount(self.rows[lit], minlength=num_rows), out=indptr[1:])
        return SparseActivations(indptr, self.units[lit].astype(np.int32), weights[lit], num_units)


class TokenTerms:
    """Every token is a term of its own; special tokens are none."""

    def __init__(self, tokenizer: Any, num_units: int) -> None:
        """`num_units`: ids of tokens that the model knows."""
        self.vocabulary: Vocabulary = SubwordVocabulary(tokenizer.get_vocab(), num_units)
        self._is_special = np.zeros(num_units, bool)
        self._is_special[[token for token in tokenizer.all_special_ids if token < num_units]] = True

    def places(self, ids: Sequence[Sequence[int]]) -> TermPlaces:
        """Where the terms of tokenized texts stand."""
        rows, positions, tokens = _flat(ids)
        spoken = ~self._is_special[tokens]
        ones = np.ones(len(tokens), np.float32)
        return TermPlaces(rows, positions, tokens, ones).chosen(spoken)


class WholeTerms:
    """Whole words, each spoken for by its first token.

    A word of one token has that token's unit, and a word of several the unit of its own, behind those of the tokens.
    Words of several tokens that are not among `words` are spoken for by the terms of all of their tokens together,
    so that an encoder's vocabulary is fixed and yet every word can be found. Words without a letter or a digit are
    none.
    """

    def __init__(self, tokenizer: Any, num_tokens: int, words: Sequence[Sequence[int]] = ()) -> None:
        """Take the words.

        Args:
            tokenizer: WordPiece, whose tokens say whether they start a word.
            num_tokens: ids of tokens that the model knows.
            words: tokens of the words that have their own units, two or more each.

        Raises:
            UsageError: the tokenizer does not mark the tokens that go on with a word by ``##``.
            FormatError: a word has a token that is not there, has fewer than two, or comes twice.
        """
        tokens = tokenizer.get_vocab()
        if not any(token.startswith(CONTINUES) for token in tokens):
            raise UsageError(
                "deepimpact weighs whole words and knows their pieces by ##, as WordPiece writes them; take a model "
                "with a WordPiece tokenizer (BERT, DistilBERT, MiniLM), or unicoil"
            )
        names = SubwordVocabulary(tokens, num_tokens)
        self._is_special = np.zeros(num_tokens, bool)
        self._is_special[[token for token in tokenizer.all_special_ids if token < num_tokens]] = True
        self._continues = np.array([names.term(token).startswith(CONTINUES) for token in range(num_tokens)])
        self._is_spoken = np.array(
            [any(letter.isalnum() for letter in names.term(token)) for token in range(num_tokens)]
        )
        self._units = {tuple(word): num_tokens + place for place, word in enumerate(words)}
        if len(self._units) != len(words) or not all(
            len(word) > 1 and all(0 <= token < num_tokens for token in word) for word in self._units
        ):
            raise FormatError(
                "the words of a deepimpact encoder must be distinct lists of two tokens or more"
            )
        self.vocabulary: Vocabulary = WordVocabulary(
            names, [_spelled([names.term(token) for token in word]) for word in words]
        )

    def places(self, ids: Sequence[Sequence[int]]) -> TermPlaces:
        """Where the terms of tokenized texts stand: at the first token of their words."""
        rows, positions, tokens = _flat(ids)
        spoken = ~self._is_special[tokens]
        starts = np.flatnonzero(spoken & ~(self._continues[tokens] & _follows(rows, spoken)))
        # A word ends where the next one starts, or at a special token; a text starts with either of the two.
        breaks = np.union1d(starts, np.flatnonzero(~spoken))
        ends = np.append(breaks, len(tokens))[np.searchsorted(breaks, starts, side="right")]
        found = list(self._words(tokens, starts, ends))
        at = np.array([start for start, _, _ in found], np.int64)
        units = np.array([unit for _, unit, _ in found], np.int64)
        shares = np.array([share for _, _, share in found], np.float32)
        return TermPlaces(rows[at], positions[at], units, shares)

    def words_of(self, ids: Sequence[Sequence[int]]) -> Iterable[tuple[int, ...]]:
        """Tokens of the words of more than one token, as they come."""
        for row in ids:
            word: list[int] = []
            for token in [*row, -1]:
                if token >= 0 and not self._is_special[token] and self._continues[token] and word:
                    word.append(token)
                    continue
                if len(word) > 1 and self._is_spoken[word].any():
                    yield tuple(word)
                word = [] if token < 0 or self._is_special[token] else [token]

    def _words(
        self, tokens: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> Iterable[tuple[int, int, float]]:
        """Start, unit and share of every term."""
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            word = tokens[start:end]
            if not self._is_spoken[word].any():
                continue
            pieces = tuple(word.tolist())
            own = pieces[0] if len(pieces) == 1 else self._units.get(pieces)
            for unit in pieces if own is None else (own,):
                yield start, unit, 1.0 if own is not None else 1.0 / len(pieces)


class WordVocabulary(Vocabulary):
    """Tokens, and words of several of them behind."""

    def __init__(self, tokens: SubwordVocabulary, words: Sequence[str]) -> None:
        self._tokens = tokens
        self._words = list(words)
        self._units = {word: len(tokens) + place for place, word in enumerate(words)}

    def __len__(self) -> int:
        return len(self._tokens) + len(self._words)

    def term(self, unit: int) -> str:
        return self._tokens.term(unit) if unit < len(self._tokens) else self._words[unit - len(self._tokens)]

    def find(self, terms: Sequence[str]) -> list[int]:
        return [
            self._units.get(term, token) for term, token in zip(terms, self._tokens.find(terms), strict=True)
        ]


def frequent_words(terms: WholeTerms, ids: Sequence[Sequence[int]], count: int) -> list[tuple[int, ...]]:
    """The `count` most frequent words of several tokens in tokenized texts; of equally frequent ones the first."""
    counted = Counter(terms.words_of(ids))
    return [word for word, _ in counted.most_common(count)]


def _flat(
    ids: Sequence[Sequence[int]],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Row, position and id of every token."""
    lengths = np.array([len(row) for row in ids], np.int64)
    rows = np.repeat(np.arange(len(ids)), lengths)
    starts = np.cumsum(lengths) - lengths
    tokens = (
        np.concatenate([np.asarray(row, np.int64) for row in ids]) if len(rows) else np.zeros(0, np.int64)
    )
    return rows, np.arange(len(rows)) - starts[rows], tokens


def _follows(rows: NDArray[np.int64], spoken: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether the token before is of the same text and not a special one."""
    before = np.zeros(len(rows), bool)
    before[1:] = (rows[1:] == rows[:-1]) & spoken[:-1]
    return before


def _spelled(pieces: Sequence[str]) -> str:
    return "".join(piece.removeprefix(CONTINUES) for piece in pieces)
