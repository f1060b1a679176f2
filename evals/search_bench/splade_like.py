"""Vectors with the statistics of SPLADE on MS MARCO, generated: any number of documents, and queries about them.

What is imitated is how such vectors come about. Words light up a term each and, weaker, terms that are related to
it or that are common; a row is the maximum over its words; words come from the topic of the document, from its
field, or from anywhere; a query is about one document: it holds a few of its most important words, expanded anew.

Document `i` depends on the seed and on `i` alone, so that any number of them can be made in chunks, in any order,
and a smaller collection is the beginning of a larger one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from runtime.activations import SparseActivations

NUM_TERMS = 30_522
"""BERT's WordPiece vocabulary."""
FIELDS, TOPICS, FAMILY = 64, 6_144, 24
TOPIC_WORDS, EXPANSIONS, QUERY_STYLES = 40, 20, 160
CHUNK = 20_000
MOST_WORDS = 64
POPULAR = 1 << 18
"""Places of the table that common terms are drawn from."""
ROOM = 400
"""Non-zeros a row that there is room for, on average over a chunk."""

SUBJECT, MOST_OTHERS = 3, 40
"""Words that are the subject of a document, and other words of it that a query may hold."""
DOCUMENT_SHAPE, QUERY_SHAPE = (0.12, 1.03, 6.0), (0.115, 1.65, 14.0)
"""Threshold, power and scale of weights: fitted to how many terms are lit and how the mass is spread."""

Tables = tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class SpladeLike:
    """The world that documents and queries are drawn from.

    Attributes:
        seed: the same seed gives the same vectors.
        tables: what the kernels read; see `_tables`.
    """

    seed: int = 0
    tables: Tables = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tables", _tables(np.random.default_rng(self.seed)))

    def documents(self, start: int, stop: int) -> SparseActivations:
        """The documents ``[start, stop)``, float32, terms ascending; about 120 non-zeros each."""
        return self._rows(np.arange(start, stop, dtype=np.int64), queries=False)

    def document_chunks(self, count: int) -> Iterator[SparseActivations]:
        """The first `count` documents, in order, some thousands at a time."""
        for start in range(0, count, CHUNK):
            yield self.documents(start, min(start + CHUNK, count))

    def queries(self, count: int, documents: int) -> SparseActivations:
        """`count` queries, each about one of the first `documents` documents; about 43 non-zeros each."""
        about = np.random.default_rng((self.seed, 1)).choice(documents, count, replace=count > documents)
        return self._rows(about.astype(np.int64), queries=True)

    def _rows(self, numbers: NDArray[np.int64], queries: bool) -> SparseActivations:
        lengths, terms, weights = _generate(np.uint64(self.seed), numbers, self.tables, queries)
        indptr = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
        return SparseActivations(indptr, terms, weights, NUM_TERMS)


def _popularity() -> NDArray[np.float64]:
    """How often the term at a rank is lit up, up to a factor: flat at first, then falling like Zipf's law."""
    rank = np.arange(1, NUM_TERMS + 1, dtype=np.float64)
    return rank**-0.25 * (1 + rank / 400) ** -1.35


def _tables(random: np.random.Generator) -> Tables:
    """`popular`: terms, each as often as it is popular. `topic_words`: words of each topic, the most typical first.
    `fields`: field of each topic. `field_words`: words of each field, each as often as it is popular there.
    `expansions`, `strengths`: the terms that each word lights up and how strongly. `styles`: words that queries
    light up because they are queries."""
    popularity = _popularity()
    # Term ids follow popularity only roughly, as WordPiece ids do.
    order = np.argsort(np.arange(NUM_TERMS) * random.lognormal(0, 0.7, NUM_TERMS)).astype(np.int32)
    term_at = np.empty(NUM_TERMS, np.int32)
    term_at[np.arange(NUM_TERMS)] = np.argsort(order)
    popular = _sample(random, popularity, POPULAR)
    field_of = random.integers(0, FIELDS, NUM_TERMS).astype(np.int32)
    family_of = random.permutation(NUM_TERMS) // FAMILY
    members = (
        np.argsort(family_of, kind="stable").reshape(-1)[: NUM_TERMS // FAMILY * FAMILY].reshape(-1, FAMILY)
    )
    field_words = np.stack(
        [_sample(random, np.where(field_of == f, popularity**0.95, 0), 4096) for f in range(FIELDS)]
    )
    # A topic's own words are rarer than words at large.
    topical = _sample(random, np.where(np.arange(NUM_TERMS) < 120, 0, popularity**0.55), POPULAR)
    topic_fields = random.integers(0, FIELDS, TOPICS).astype(np.int32)
    source = random.random((TOPICS, TOPIC_WORDS))
    topic_words = topical[random.integers(0, POPULAR, (TOPICS, TOPIC_WORDS))]
    from_field = field_words[topic_fields[:, None], random.integers(0, 4096, (TOPICS, TOPIC_WORDS))]
    topic_words = np.where(source < 0.3, topic_words, from_field)
    expansions = np.empty((NUM_TERMS, EXPANSIONS), np.int32)
    expansions[:, 0] = np.arange(NUM_TERMS)
    kind = random.random((NUM_TERMS, EXPANSIONS))
    row = np.minimum(family_of, len(members) - 1)
    family = members[row[:, None], random.integers(0, FAMILY, (NUM_TERMS, EXPANSIONS))]
    field_mates = field_words[field_of[:, None], random.integers(0, 4096, (NUM_TERMS, EXPANSIONS))]
    common = popular[random.integers(0, POPULAR, (NUM_TERMS, EXPANSIONS))]
    mixed = np.where(kind < 0.3, family, np.where(kind < 0.6, field_mates, common))
    expansions[:, 1:] = mixed[:, 1:]
    place = np.arange(EXPANSIONS)
    strengths = np.exp(-0.13 * place - 0.55 * (place > 0)) * random.lognormal(
        0, 0.35, (NUM_TERMS, EXPANSIONS)
    )
    styles = popular[random.integers(0, POPULAR, QUERY_STYLES)]
    return (
        term_at[popular],
        term_at[topic_words].astype(np.int32),
        topic_fields,
        term_at[field_words].astype(np.int32),
        term_at[expansions][order].astype(np.int32),
        strengths[order].astype(np.float32),
        term_at[styles],
    )


def _sample(random: np.random.Generator, weights: NDArray[np.float64], size: int) -> NDArray[np.int32]:
    """A table of `size` items in which each item stands about as often as its weight says."""
    cumulative = np.cumsum(weights / weights.sum())
    at = (np.arange(size) + random.random(size)) / size
    return np.minimum(np.searchsorted(cumulative, at), len(weights) - 1).astype(np.int32)


@njit(cache=True, inline="always")
def _next(state: NDArray[np.uint64]) -> np.uint64:
    """SplitMix64 (Steele, Lea, Flood 2014): the next number of a stream."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True, inline="always")
def _uniform(state: NDArray[np.uint64]) -> float:
    return np.float64(_next(state) >> np.uint64(11)) * 2.0**-53


@njit(cache=True, inline="always")
def _below(state: NDArray[np.uint64], limit: int) -> int:
    return int(_uniform(state) * limit)


@njit(cache=True, inline="always")
def _about_normal(state: NDArray[np.uint64]) -> float:
    """Of mean 0 and variance 1, by the sum of four uniform numbers: smooth and bounded is all that is needed."""
    total = _uniform(state) + _uniform(state) + _uniform(state) + _uniform(state)
    return (total - 2.0) * 3.0**0.5


@njit(cache=True)
def _start(state: NDArray[np.uint64], seed: np.uint64, number: int, kind: int) -> None:
    """Begin the stream of a document (kind 0) or of the query about it (kind 1)."""
    state[0] = seed * np.uint64(0xD1342543DE82EF95) + np.uint64(number) * np.uint64(2) + np.uint64(kind)
    _next(state)
    state[0] = _next(state)


@njit(cache=True)
def _draw_words(
    state: NDArray[np.uint64], words: NDArray[np.int64], strengths: NDArray[np.float64], tables: Tables
) -> int:
    """The words of a document and how much each matters, the subject first; returns how many."""
    popular, topic_words, topic_fields, field_words = tables[0], tables[1], tables[2], tables[3]
    topic = np.int64(TOPICS * _uniform(state) ** 1.6)
    count = min(MOST_WORDS, max(4, int(17.0 * np.exp(0.33 * _about_normal(state)))))
    for i in range(count):
        place = _uniform(state)
        if i < SUBJECT or place < 0.62:
            # The subject is among the most typical words of the topic.
            span = 8 if i < SUBJECT else TOPIC_WORDS
            words[i] = topic_words[topic, np.int64(span * _uniform(state) ** 1.3)]
        elif place < 0.82:
            words[i] = field_words[topic_fields[topic], _below(state, field_words.shape[1])]
        else:
            words[i] = popular[_below(state, popular.shape[0])]
        matters = 1.0 if i < SUBJECT else 0.62
        strengths[i] = matters * np.exp(0.3 * _about_normal(state))
    return count


@njit(cache=True)
def _light_up(
    state: NDArray[np.uint64],
    word: int,
    strength: float,
    row: NDArray[np.float64],
    lit: NDArray[np.int32],
    num_lit: int,
    tables: Tables,
) -> int:
    """Raise a dense row to what a word lights up; returns how many terms are lit then."""
    expansions, strengths = tables[4], tables[5]
    for e in range(expansions.shape[1]):
        weight = strength * strengths[word, e] * np.exp(0.35 * _about_normal(state))
        term = expansions[word, e]
        if row[term] == 0.0:
            lit[num_lit] = term
            num_lit += 1
        row[term] = max(row[term], weight)
    return num_lit


@njit(cache=True)
def _take(
    row: NDArray[np.float64],
    lit: NDArray[np.int32],
    num_lit: int,
    shape: tuple[float, float, float],
    terms: NDArray[np.int32],
    weights: NDArray[np.float32],
    end: int,
) -> int:
    """Append the terms above a threshold in ascending order, as log(1 + …), and clear the row."""
    least, power, scale = shape
    kept = 0
    for i in range(num_lit):
        if row[lit[i]] > least:
            lit[kept], lit[i] = lit[i], lit[kept]
            kept += 1
    chosen = np.sort(lit[:kept])
    for i in range(kept):
        terms[end + i] = chosen[i]
        weights[end + i] = np.log1p(scale * (row[chosen[i]] - least) ** power)
    for i in range(num_lit):
        row[lit[i]] = 0.0
    return kept


@njit(cache=True, nogil=True)
def _generate(
    seed: np.uint64, numbers: NDArray[np.int64], tables: Tables, queries: bool
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    expansions, styles = tables[4], tables[6]
    state = np.zeros(1, np.uint64)
    words, matters = np.empty(MOST_WORDS, np.int64), np.empty(MOST_WORDS)
    row = np.zeros(expansions.shape[0])
    lit = np.empty(MOST_WORDS * expansions.shape[1], np.int32)
    room = numbers.shape[0] * ROOM + lit.shape[0]
    terms, weights = np.empty(room, np.int32), np.empty(room, np.float32)
    lengths = np.empty(numbers.shape[0], np.int64)
    end = 0
    for i in range(numbers.shape[0]):
        _start(state, seed, numbers[i], 0)
        count = _draw_words(state, words, matters, tables)
        num_lit = 0
        if queries:
            _start(state, seed, numbers[i], 1)
            verbose = 0.75 * _uniform(state)
            # The subject of the document, sometimes only in part, and now and then one of its other words.
            for w in range(SUBJECT):
                if w == 0 or _uniform(state) < 0.3 + verbose:
                    num_lit = _light_up(state, words[w], 1.0, row, lit, num_lit, tables)
            for _ in range(MOST_OTHERS):
                if count == SUBJECT or _uniform(state) >= verbose:
                    break
                other = words[SUBJECT + _below(state, count - SUBJECT)]
                num_lit = _light_up(state, other, 0.6, row, lit, num_lit, tables)
            for _ in range(3):
                style = styles[np.int64(styles.shape[0] * _uniform(state) ** 1.3)]
                num_lit = _light_up(state, style, 0.33, row, lit, num_lit, tables)
            lengths[i] = _take(row, lit, num_lit, QUERY_SHAPE, terms, weights, end)
        else:
            for w in range(count):
                num_lit = _light_up(state, words[w], matters[w], row, lit, num_lit, tables)
            lengths[i] = _take(row, lit, num_lit, DOCUMENT_SHAPE, terms, weights, end)
        end += lengths[i]
    return lengths, terms[:end].copy(), weights[:end].copy()
