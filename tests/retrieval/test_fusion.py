"""Fusing rankings, against the formulas written out for one document at a time."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.search.fusion import fuse
from runtime.errors import UsageError

ranking = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.integers(-4, 4).map(float)), unique_by=lambda row: row[0]
).map(lambda rows: sorted(rows, key=lambda row: -row[1]))


def worth_in(rows: list[tuple[str, float]], document: str, method: str) -> float:
    place = next((i for i, (name, _) in enumerate(rows) if name == document), None)
    if place is None:
        return 0.0
    if method == "rrf":
        return 1 / (60 + place + 1)
    low, high = min(score for _, score in rows), max(score for _, score in rows)
    return 1.0 if low == high else (rows[place][1] - low) / (high - low)


@given(st.lists(ranking, min_size=1, max_size=3), st.integers(1, 10), st.sampled_from(["rrf", "min_max"]))
def test_scores_are_those_of_the_formula_and_ties_stay_in_order(
    rankings: list[list[tuple[str, float]]], k: int, method: str
) -> None:
    found = fuse(rankings, k, method)  # type: ignore[arg-type]
    seen = list(dict.fromkeys(document for rows in rankings for document, _ in rows))
    expected = {
        document: sum(worth_in(rows, document, method) for rows in rankings) / len(rankings)
        for document in seen
    }
    assert len(found) == min(k, len(seen))
    for document, score in found:
        assert score == pytest.approx(expected[document], abs=1e-12)
    left_out = [expected[document] for document in seen if document not in dict(found)]
    assert not left_out or max(left_out) <= found[-1][1] + 1e-12
    for (one, one_score), (other, other_score) in pairwise(found):
        assert one_score > other_score or (one_score == other_score and seen.index(one) < seen.index(other))


def test_weights_are_shares_and_a_weight_of_0_leaves_only_the_order_of_ties() -> None:
    rankings = [[("a", 3.0), ("b", 1.0)], [("b", 9.0), ("c", 8.0)]]
    assert fuse(rankings, 3, "min_max", [3, 1]) == [("a", 0.75), ("b", 0.25), ("c", 0.0)]
    assert fuse(rankings, 3, "min_max", [0, 1]) == [("b", 1.0), ("a", 0.0), ("c", 0.0)]


def test_no_rankings_have_no_results() -> None:
    assert fuse([], 3) == []
    assert fuse([[], []], 3, "min_max") == []


@pytest.mark.parametrize(
    ("k", "method", "weights", "said"),
    [
        (0, "rrf", None, "k must be at least 1"),
        (1, "borda", None, "no fusion 'borda'; choose from rrf, min_max"),
        (1, "rrf", [1.0], "2 rankings are fused with 1 weights"),
        (1, "rrf", [1.0, -1.0], "0 or more"),
        (1, "rrf", [0.0, 0.0], "not all 0"),
        (1, "rrf", [float("nan"), 1.0], "finite"),
    ],
)
def test_what_makes_no_sense_is_refused(k: int, method: str, weights: list[float] | None, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        fuse([[("a", 1.0)], [("b", 1.0)]], k, method, weights)  # type: ignore[arg-type]
