from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.training.combine import ensemble, ensemble_lists, ensemble_scores, min_max, rescale_like
from retrieval.training.teachers.vectors import DenseTeacher
from runtime.errors import UsageError

ROW = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=6)


@given(row=ROW)
def test_min_max_follows_its_formula(row: list[float]) -> None:
    found = min_max(np.array(row, np.float32))
    least, most = min(row), max(row)
    expected = [(value - least) / (most - least) if most > least else 0.0 for value in row]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@given(
    lists=st.lists(st.tuples(ROW, st.floats(0.125, 8), st.floats(-5, 5)), min_size=1, max_size=4),
)
def test_the_scale_of_a_teacher_does_not_count(lists: list[tuple[list[float], float, float]]) -> None:
    rows = [np.array(row, np.float64) for row, _, _ in lists]
    moved = [factor * row + offset for row, (_, factor, offset) in zip(rows, lists, strict=True)]
    for alone, together in zip(rows, ensemble_lists([rows, moved]), strict=True):
        # Unless the spread is lost in the digits of the map.
        if np.ptp(alone) > 1e-3 or np.ptp(alone) == 0:
            np.testing.assert_allclose(together, min_max(alone), atol=1e-4)


def test_teachers_count_equally() -> None:
    found = ensemble([np.array([[0.0, 5.0, 10.0]]), np.array([[3.0, 1.0, 1.0]])])
    np.testing.assert_allclose(found, [[0.5, 0.25, 0.5]])
    assert found.dtype == np.float32


def test_a_batch_is_scored_by_all_teachers() -> None:
    rng = np.random.default_rng(0)
    teachers = [
        DenseTeacher(
            name, name, rng.normal(size=(3, 4)).astype(np.float16), rng.normal(size=(5, 4)).astype(np.float16)
        )
        for name in "ab"
    ]
    queries, passages = np.array([2, 0]), np.array([4, 1, 1, 3])
    found = ensemble_scores(teachers, queries, passages)
    assert found.shape == (2, 4)
    np.testing.assert_allclose(
        found,
        np.mean([min_max(teacher.scores(queries, passages)) for teacher in teachers], axis=0),
        rtol=1e-6,
    )


def test_combined_scores_take_the_mean_and_spread_of_a_teacher() -> None:
    rng = np.random.default_rng(1)
    scores = [rng.random(size).astype(np.float32) for size in (3, 1, 5)]
    reference = [(20 * rng.random(size) - 9).astype(np.float32) for size in (3, 1, 5)]
    found = rescale_like(scores, reference)
    together, wanted = np.concatenate(found), np.concatenate(reference)
    assert together.mean() == pytest.approx(wanted.mean(), abs=1e-5)
    assert together.std() == pytest.approx(wanted.std(), rel=1e-5)
    assert np.corrcoef(together, np.concatenate(scores))[0, 1] == pytest.approx(1)


def test_what_cannot_be_combined_is_refused() -> None:
    with pytest.raises(UsageError, match="no teacher to combine"):
        ensemble([])
    with pytest.raises(UsageError, match="no teacher to combine"):
        ensemble_lists([])
    with pytest.raises(UsageError, match="different numbers of candidates for query 1"):
        ensemble_lists([[np.zeros(2), np.zeros(2)], [np.zeros(2), np.zeros(3)]])
    with pytest.raises(UsageError, match="all equal"):
        rescale_like([np.ones(2, np.float32)], [np.arange(2, dtype=np.float32)])
    assert rescale_like([], []) == []
