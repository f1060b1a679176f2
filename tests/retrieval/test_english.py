"""English analysis against what Lucene's EnglishAnalyzer is documented to do."""

from __future__ import annotations

import re

import numpy as np
import pytest
import Stemmer
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.encoders.english import MAX_TOKEN_LENGTH, STOP_WORDS, EnglishAnalyzer, tokenize


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("wi-fi x/y", ["wi", "fi", "x", "y"]),
        ("o'clock don’t", ["o'clock", "don’t"]),  # WB6: apostrophes inside words
        ("foo.bar U.S.A. end.", ["foo.bar", "U.S.A", "end"]),
        ("3.14 1,000 x.5 5.x", ["3.14", "1,000", "x", "5", "5", "x"]),  # WB11: only between digits
        ("snake_case __init__ _ ___", ["snake_case", "__init__"]),
        ("a1b2 2nd", ["a1b2", "2nd"]),
        ("漢字かな", ["漢", "字", "か", "な"]),
        ("naïve café", ["naïve", "café"]),
        ("", []),
        ("-- !? ...", []),
    ],
)
def test_tokens_follow_unicode_word_breaks(text: str, tokens: list[str]) -> None:
    assert list(tokenize(text)) == tokens


def test_long_runs_are_cut() -> None:
    assert [len(token) for token in tokenize("x" * 600)] == [MAX_TOKEN_LENGTH, MAX_TOKEN_LENGTH, 90]


def test_possessives_stop_words_case_and_porter() -> None:
    analyzer = EnglishAnalyzer()
    assert analyzer.terms("The Cat's running, and the dogs' toys") == ["cat", "run", "dog", "toi"]
    assert analyzer.terms(" ".join(STOP_WORDS)) == []
    assert analyzer.terms("s as us is") == ["s", "us"]  # Porter leaves words of one or two letters alone
    assert analyzer.terms("relational conditional hopefulness generalization") == [
        "relat",
        "condit",
        "hope",
        "gener",
    ]


WORDS = st.sampled_from(["cat", "cats", "the", "Dog's", "x.y", "running", "été", "漢字", "--", "3.14"])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(WORDS, max_size=12).map(" ".join), max_size=8))
def test_counts_are_those_of_the_term_lists(texts: list[str]) -> None:
    analyzer = EnglishAnalyzer()
    counted = analyzer.count(texts)
    assert counted.terms == list(dict.fromkeys(term for text in texts for term in analyzer.terms(text)))
    for row, text in enumerate(texts):
        places = slice(counted.indptr[row], counted.indptr[row + 1])
        terms = analyzer.terms(text)
        found = {
            counted.terms[unit]: count
            for unit, count in zip(counted.units[places], counted.counts[places], strict=True)
        }
        assert found == {term: terms.count(term) for term in terms}
        assert np.all(np.diff(counted.units[places]) > 0)
        assert counted.lengths[row] == len(terms)


PIECES = st.sampled_from(
    [*"abzXS019_.,:;'’\"()[]{}!?-/\\$%&*+<=>@^`|~#é漢\u00ad\u0301·", "'s", "the", "running", "x" * 300]
)


@settings(max_examples=300)
@given(st.lists(PIECES, min_size=1, max_size=8).map("".join))
def test_plain_words_are_analysed_as_all_are(word: str) -> None:
    stemmer = Stemmer.Stemmer("porter", 0)
    lowered = [re.sub(r"['\u2019\uff07][sS]$", "", token).lower() for token in tokenize(word)]
    kept = [token for token in lowered if token and token not in STOP_WORDS]
    assert EnglishAnalyzer().terms(word) == [
        stemmer.stemWord(token) if len(token) > 2 else token for token in kept
    ]
