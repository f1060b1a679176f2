"""The best results are the same as those of sorting everything, whatever comes in whatever order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retrieval.search.top_k import MOST_ROWS, keep_best, needed_score, offer, room_for, sort_best_first

SCORES = st.one_of(
    st.sampled_from([-1.0, 0.0, 1e-45, 1.0, 1.5, 2.0, 3.4e38, float("inf")]),
    st.floats(0, 100, width=32),
)


def best_of(results: list[tuple[float, int]], k: int) -> list[tuple[float, int]]:
    return sorted((result for result in results if result[0] > 0), key=lambda found: (-found[0], found[1]))[
        :k
    ]


@given(st.lists(SCORES, max_size=300), st.integers(1, 120), st.randoms(use_true_random=False))
def test_offered_results(scores: list[float], k: int, random: np.random.Generator) -> None:
    rows = [0, MOST_ROWS - 1, *range(5, 5 + len(scores))][: len(scores)]
    results = list(zip(np.array(scores, np.float32).tolist(), rows, strict=True))
    random.shuffle(results)
    keys, size = np.zeros((1, room_for(k)), np.uint64), 0
    for place, (score, row) in enumerate(results):
        size = offer(keys[0], size, k, np.float32(score), row)
        so_far = best_of(results[: place + 1], k)
        # Nothing that is still needed is ever said to be below what a result needs.
        assert needed_score(keys[0], size, k) <= (so_far[-1][0] if len(so_far) == k else 0)
    kept = keep_best(keys[0], size, k)
    expected = best_of(results, k)
    assert kept == len(expected)
    assert needed_score(keys[0], kept, k) == (expected[-1][0] if kept == k else 0)
    sizes = np.array([kept])
    best_scores, best_rows = np.zeros((1, k), np.float32), np.zeros((1, k), np.int64)
    sort_best_first(keys, sizes, k, (0, 1), best_scores, best_rows)
    found = list(zip(best_scores[0, :kept].tolist(), best_rows[0, :kept].tolist(), strict=True))
    assert found == expected


@given(st.lists(st.integers(1, 2**64 - 1), min_size=1, max_size=400, unique=True), st.integers(1, 400))
def test_the_best_of_many_keys(numbers: list[int], k: int) -> None:
    for keys in (np.array(numbers, np.uint64), np.sort(np.array(numbers, np.uint64))):
        size = keep_best(keys, len(keys), k)
        expected = sorted(numbers, reverse=True)[:k]
        assert sorted(keys[:size].tolist(), reverse=True) == expected
        assert keys[0] == expected[-1]
