"""English analysis as Lucene's: standard tokenizer, possessives, lower case, stop words, Porter's stemmer.

Reference: Lucene's ``EnglishAnalyzer``, which Anserini and Pyserini use by default; the tokenizer follows the
word-break rules of Unicode Standard Annex 29.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import Stemmer
from numpy.typing import NDArray

STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these "  # noqa: SIM905
    "they this to was will with".split()
)

MAX_TOKEN_LENGTH = 255
"""Longer runs are cut into pieces of this length, as Lucene's tokenizer does."""

# UAX 29: a letter keeps together with a letter across MidLetter, MidNumLet or an apostrophe (rules WB6, WB7),
# a digit with a digit across MidNum, MidNumLet or an apostrophe (WB11, WB12); letters, digits and connector
# punctuation join freely (WB5, WB8 to WB10, WB13). Han and Hiragana characters are tokens of their own.
_LETTER = r"[^\W\d_\u3040-\u309f\u4e00-\u9fff\u3400-\u4dbf]"
_MID_LETTER = r"[:\u00b7\u0387\u055f\u05f4\u2027\ufe13\ufe55\uff1a.\u2018\u2019\u2024\ufe52\uff07\uff0e']"
_MID_NUMBER = (
    r"[,;\u037e\u0589\u060c\u060d\u066c\u07f8\u2044\ufe10\ufe14\ufe50\ufe54\uff0c\uff1b"
    r".\u2018\u2019\u2024\ufe52\uff07\uff0e']"
)
_JOINED = r"[^\W\u3040-\u309f\u4e00-\u9fff\u3400-\u4dbf]"
_TOKEN = re.compile(
    rf"{_JOINED}(?:{_JOINED}|[\u0300-\u036f\u200d\u00ad]"
    rf"|(?<={_LETTER}){_MID_LETTER}(?={_LETTER})|(?<=\d){_MID_NUMBER}(?=\d))*"
    r"|[\u3040-\u309f\u4e00-\u9fff\u3400-\u4dbf]"
)
_POSSESSIVE = re.compile(r"['\u2019\uff07][sS]$")
_WORD = re.compile(r"[^\W_]")
_EDGES = "!\"#$%&'()*+,-./:;<=>?@[\\]^`{|}~"
"""ASCII punctuation that joins nothing at the edge of a token: all but the connector ``_``."""

REMEMBERED_WORDS = 1 << 19
"""Distinct words whose analysis is remembered before starting over; bounds memory on unbounded input."""


def tokenize(text: str) -> Iterator[str]:
    """Lucene's standard tokenizer: the words and numbers of a text, case kept."""
    for match in _TOKEN.finditer(text):
        token = match.group()
        if not _WORD.search(token):
            continue  # connector punctuation alone
        for start in range(0, len(token), MAX_TOKEN_LENGTH):
            yield token[start : start + MAX_TOKEN_LENGTH]


@dataclass(frozen=True, slots=True)
class TermCounts:
    """The terms of a batch of texts, counted.

    Attributes:
        terms: the distinct terms of the batch, in order of first appearance.
        indptr: int64 ``[texts + 1]``.
        units: int32 ``[nnz]``, places in `terms`, ascending and distinct within a text.
        counts: float32 ``[nnz]``.
        lengths: int64 ``[texts]``, terms in each text, repeats included.
    """

    terms: list[str]
    indptr: NDArray[np.int64]
    units: NDArray[np.int32]
    counts: NDArray[np.float32]
    lengths: NDArray[np.int64]


class _WordTerms(dict[str, list[int]]):
    """From a whitespace-separated word to the terms in it, as places in `terms`; filled as words are met.

    Tokens never span white space, so each word is analysed on its own, once.
    """

    def __init__(self, stop_words: frozenset[str]) -> None:
        super().__init__()
        self.terms: list[str] = []
        self._places: dict[str, int] = {}
        self._plain: dict[str, list[int]] = {}
        self._stop_words = stop_words
        self._stemmer = Stemmer.Stemmer("porter", 0)

    def __missing__(self, word: str) -> list[int]:
        # Most words are ASCII letters or digits between punctuation, and so one token: "(Earth," like "earth".
        core = word.strip(_EDGES)
        if core.isalnum() and core.isascii() and len(core) <= MAX_TOKEN_LENGTH:
            plain = core.lower()
            places = self._plain.get(plain)
            if places is None:
                places = self._plain[plain] = [self._place(term) for term in self._stemmed([plain])]
        else:
            places = [self._place(term) for term in self.analyse(word)]
        self[word] = places
        return places

    def analyse(self, word: str) -> Iterator[str]:
        """The terms of any word, by the rules; what stands for plain words is a short cut."""
        return self._stemmed(_POSSESSIVE.sub("", token).lower() for token in tokenize(word))

    def _stemmed(self, tokens: Iterable[str]) -> Iterator[str]:
        for token in tokens:
            if token and token not in self._stop_words:
                # Porter's algorithm leaves words of one or two letters alone.
                yield self._stemmer.stemWord(token) if len(token) > 2 else token

    def _place(self, term: str) -> int:
        place = self._places.setdefault(term, len(self.terms))
        if place == len(self.terms):
            self.terms.append(term)
        return place


class EnglishAnalyzer:
    """Text to terms. Remembers the words it has met, so one instance belongs to one thread."""

    def __init__(self, stop_words: frozenset[str] = STOP_WORDS) -> None:
        self.stop_words = stop_words
        self._words = _WordTerms(stop_words)

    def terms(self, text: str) -> list[str]:
        """The terms of a text in order: stop words removed, stemmed."""
        words = self._remembered()
        return [words.terms[place] for word in text.split() for place in words[word]]

    def count(self, texts: Sequence[str]) -> TermCounts:
        """Count the terms of each text."""
        words = self._remembered()
        occurrences: list[int] = []
        ends = np.zeros(len(texts) + 1, np.int64)
        lookup = words.__getitem__
        for number, text in enumerate(texts, start=1):
            occurrences.extend(chain.from_iterable(map(lookup, text.split())))
            ends[number] = len(occurrences)
        lengths = np.diff(ends)
        places, first, inverse = np.unique(
            np.array(occurrences, np.int64), return_index=True, return_inverse=True
        )
        by_appearance = np.argsort(first)
        rank = np.empty(len(places), np.int64)
        rank[by_appearance] = np.arange(len(places))
        keys, counts = np.unique(
            np.repeat(np.arange(len(texts)), lengths) * len(places) + rank[inverse], return_counts=True
        )
        indptr = np.zeros(len(texts) + 1, np.int64)
        if len(keys):
            np.cumsum(np.bincount(keys // len(places), minlength=len(texts)), out=indptr[1:])
            keys %= len(places)
        terms = [words.terms[place] for place in places[by_appearance].tolist()]
        return TermCounts(terms, indptr, keys.astype(np.int32), counts.astype(np.float32), lengths)

    def _remembered(self) -> _WordTerms:
        if len(self._words) > REMEMBERED_WORDS:
            self._words = _WordTerms(self.stop_words)
        return self._words
