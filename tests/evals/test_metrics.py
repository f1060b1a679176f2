"""The measures against their textbook definitions, and the order that they follow."""

from __future__ import annotations

from math import log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.metrics import MEASURES, mean, measure
from runtime.errors import InputError

DOCUMENTS = [f"d{number}" for number in range(30)]


def textbook(grades: dict[str, int], ranking: list[str], level: int) -> dict[str, float]:
    """The definitions, written out: Järvelin and Kekäläinen's nDCG with linear gain, the others binary."""
    relevant = {document for document, grade in grades.items() if grade >= level}
    gains = [max(0, grades.get(document, 0)) for document in ranking[:10]]
    ideal = sorted((max(0, grade) for grade in grades.values()), reverse=True)[:10]
    dcg, best = (sum(gain / log2(rank + 2) for rank, gain in enumerate(g)) for g in (gains, ideal))
    hits = [document in relevant for document in ranking]
    precisions = [sum(hits[: rank + 1]) / (rank + 1) for rank, hit in enumerate(hits) if hit]
    share = 1 / len(relevant) if relevant else 0.0
    return {
        "nDCG@10": dcg / best if best else 0.0,
        "R@100": sum(hits[:100]) * share,
        "R@1000": sum(hits[:1000]) * share,
        "MRR@10": next((1 / (rank + 1) for rank, hit in enumerate(hits[:10]) if hit), 0.0),
        "MAP": sum(precisions) * share,
    }


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from(DOCUMENTS), st.integers(0, 3), min_size=1),
            st.lists(st.sampled_from(DOCUMENTS), unique=True),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 3),
)
def test_measures_equal_their_definitions(cases: list[tuple[dict[str, int], list[str]]], level: int) -> None:
    qrels = {f"q{number}": grades for number, (grades, _) in enumerate(cases)}
    rankings = {f"q{number}": ranking for number, (_, ranking) in enumerate(cases)}
    measured = measure(qrels, rankings, relevance_level=level)
    assert list(measured) == list(qrels)
    for query, grades in qrels.items():
        expected = textbook(grades, rankings[query], level)
        assert measured[query] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("order", [["a", "b", "z"], ["z", "b", "a"], ["b", "z", "a"]])
def test_the_order_of_the_ranking_counts_and_not_the_document_ids(order: list[str]) -> None:
    for rank, document in enumerate(order):
        measured = measure({"q": {document: 1}}, {"q": order})["q"]
        assert measured["MRR@10"] == pytest.approx(1 / (rank + 1))
        assert measured["nDCG@10"] == pytest.approx(1 / log2(rank + 2))


def test_a_thousand_results_keep_their_order() -> None:
    ranking = [f"d{(number * 7919) % 1000}" for number in range(1000)]
    for rank in (99, 100, 999):
        measured = measure({"q": {ranking[rank]: 1}}, {"q": ranking})["q"]
        assert measured["MAP"] == pytest.approx(1 / (rank + 1))
        assert measured["R@100"] == (1.0 if rank < 100 else 0.0)
        assert measured["R@1000"] == 1.0


def test_a_judged_query_without_results_counts_as_zero() -> None:
    measured = measure(
        {"answered": {"d": 1}, "empty": {"d": 1}, "absent": {"d": 1}}, {"answered": ["d"], "empty": []}
    )
    assert measured["empty"] == measured["absent"] == dict.fromkeys(MEASURES, 0.0)
    assert mean(measured) == pytest.approx(dict.fromkeys(MEASURES, 1 / 3))


def test_nothing_answered_is_zero_everywhere() -> None:
    assert mean(measure({"q": {"d": 1}}, {})) == dict.fromkeys(MEASURES, 0.0)


def test_a_query_with_only_grade_zero_counts_as_zero() -> None:
    measured = measure({"judged": {"d": 0}, "other": {"d": 1}}, {"judged": ["d"], "other": ["d"]})
    assert measured["judged"] == dict.fromkeys(MEASURES, 0.0)


def test_a_query_without_judgements_is_left_out() -> None:
    assert list(measure({"q": {"d": 1}}, {"q": ["d"], "unjudged": ["d"]})) == ["q"]


def test_no_judgements_is_an_error() -> None:
    with pytest.raises(InputError, match="no judgements"):
        measure({}, {"q": ["d"]})
