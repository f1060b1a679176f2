from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from runtime.activations import SparseActivations
from runtime.errors import InputError, UsageError
from runtime.kernels.registry import kernel
from runtime.select import OutputMagnitude, Threshold, TopK, TopP

LIBRARIES = ["numpy", "torch"]
BACKENDS = ["reference", "numba", "torch", "numba_tensors"]

shapes = st.tuples(st.integers(0, 4), st.integers(1, 9))
# Few distinct values, so that ties are the rule, and sums of which are exact.
signed = hnp.arrays(np.float32, shapes, elements=st.sampled_from([-np.inf, -1.5, -0.5, 0.0, 0.25, 0.5, 2.0]))
masses = hnp.arrays(np.float32, shapes, elements=st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0]))


def select(selector: Any, scores: NDArray[Any], library: str) -> SparseActivations:
    """The selection as NumPy arrays, after checking that units ascend and that weights are the scores."""
    of_library = torch.from_numpy(scores) if library == "torch" else scores
    selected = selector(of_library).numpy()
    assert selected.num_units == scores.shape[1]
    assert selected.weights.dtype == scores.dtype
    assert selected.units.dtype == np.int32
    for row, (units, weights) in enumerate(selected):
        assert (np.diff(units) > 0).all()
        np.testing.assert_array_equal(weights, scores[row, units])
    return selected


def units_of(selected: SparseActivations) -> list[list[int]]:
    return [units.tolist() for units, _ in selected]


def ranking(row: NDArray[Any]) -> list[int]:
    """Units by falling score, equal ones by rising unit."""
    return sorted(range(len(row)), key=lambda unit: (-row[unit], unit))


@pytest.mark.parametrize("library", LIBRARIES)
@given(scores=signed, k=st.integers(1, 12))
def test_top_k_keeps_the_highest_and_breaks_ties_by_lower_unit(
    library: str, scores: NDArray[Any], k: int
) -> None:
    assert units_of(select(TopK(k), scores, library)) == [sorted(ranking(row)[:k]) for row in scores]


@pytest.mark.parametrize("backend", BACKENDS)
@given(scores=signed, data=st.data())
def test_top_k_is_the_same_on_every_backend(backend: str, scores: NDArray[Any], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, scores.shape[1]))
    given_scores: Any = torch.from_numpy(scores) if backend in ("torch", "numba_tensors") else scores
    units, kept = kernel("top_k", given_scores, backend=backend)(given_scores, k)
    assert units.tolist() == [sorted(ranking(row)[:k]) for row in scores]
    np.testing.assert_array_equal(kept, np.take_along_axis(scores, np.asarray(units).astype(np.int64), 1))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (TopK(2), [[1, 3], [0, 1], [0, 1]]),
        (TopK(np.int64(4)), [[0, 1, 2, 3]] * 3),
        (Threshold(0.5), [[1, 3], [], [0, 1, 2, 3]]),
        (TopP(0.5), [[1], [], [0, 1]]),
        (OutputMagnitude(1.0, np.array([1, 1, 1, 0.5], np.float32)), [[1], [], [0, 1, 2]]),
    ],
)
def test_booleans_are_scores_of_0_and_1(library: str, selector: Any, expected: list[list[int]]) -> None:
    scores = np.array([[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
    assert units_of(select(selector, scores, library)) == expected


@pytest.mark.parametrize("library", LIBRARIES)
@given(scores=signed, k=st.integers(1, 6), width=st.integers(1, 4))
def test_top_k_over_tiles_equals_top_k_of_the_whole(
    library: str, scores: NDArray[Any], k: int, width: int
) -> None:
    whole: Any = torch.from_numpy(scores) if library == "torch" else scores
    tiles = (whole[:, start : start + width] for start in range(0, scores.shape[1], width))
    tiled = TopK(k).over_tiles(tiles).numpy()
    expected = TopK(k)(whole).numpy()
    assert units_of(tiled) == units_of(expected)
    np.testing.assert_array_equal(tiled.weights, expected.weights)
    assert tiled.num_units == expected.num_units


def test_tiles_must_exist_and_have_equally_many_rows() -> None:
    with pytest.raises(UsageError, match="no tile"):
        TopK(1).over_tiles([])
    with pytest.raises(UsageError, match="tile of 3 rows"):
        TopK(1).over_tiles([np.zeros((2, 2)), np.zeros((3, 2))])


@pytest.mark.parametrize("library", LIBRARIES)
@given(scores=signed, threshold=st.sampled_from([-1.5, 0.0, 0.25, 3.0]))
def test_threshold_keeps_what_lies_strictly_above(
    library: str, scores: NDArray[Any], threshold: float
) -> None:
    expected = [np.flatnonzero(row > threshold).tolist() for row in scores]
    assert units_of(select(Threshold(threshold), scores, library)) == expected


@pytest.mark.parametrize("library", LIBRARIES)
@given(scores=masses, p=st.sampled_from([1e-9, 0.25, 0.5, 0.75, 1.0]))
def test_top_p_keeps_the_fewest_that_reach_the_mass(library: str, scores: NDArray[Any], p: float) -> None:
    expected = []
    for row in scores:
        best = ranking(row)
        size = next(size for size in range(len(row) + 1) if row[best[:size]].sum() >= p * row.sum())
        expected.append(sorted(best[:size]))
    assert units_of(select(TopP(p), scores, library)) == expected


@pytest.mark.parametrize("library", LIBRARIES)
def test_top_p_near_zero_is_top_1(library: str) -> None:
    scores = np.array([[0.1, 0.45, 0.45]], np.float32)
    assert units_of(select(TopP(1e-6), scores, library)) == [[1]]


@pytest.mark.parametrize("library", LIBRARIES)
@given(scores=signed, epsilon=st.sampled_from([0.0, 0.5, 1.0]), data=st.data())
def test_output_magnitude_keeps_contributions_of_at_least_epsilon(
    library: str, scores: NDArray[Any], epsilon: float, data: st.DataObject
) -> None:
    scores = np.maximum(scores, -4)
    norms = data.draw(hnp.arrays(np.float32, scores.shape[1], elements=st.sampled_from([0.0, 0.5, 1.0, 2.0])))
    expected = [
        [unit for unit, score in enumerate(row) if score != 0 and abs(score) * norms[unit] >= epsilon]
        for row in scores
    ]
    assert units_of(select(OutputMagnitude(epsilon, norms), scores, library)) == expected


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    "selector", [TopK(1), Threshold(0.0), TopP(0.5), OutputMagnitude(0.1, np.ones(2, np.float32))]
)
def test_nan_is_refused_and_its_row_named(library: str, selector: Any) -> None:
    scores: Any = np.array([[1.0, 2.0], [0.0, np.nan]], np.float32)
    with pytest.raises(InputError, match="row 1"):
        selector(torch.from_numpy(scores) if library == "torch" else scores)


@pytest.mark.parametrize("library", LIBRARIES)
def test_top_p_refuses_negative_masses(library: str) -> None:
    scores: Any = np.array([[1.0, -2.0]])
    with pytest.raises(InputError, match="negative"):
        TopP(0.5)(torch.from_numpy(scores) if library == "torch" else scores)


@pytest.mark.parametrize(
    "build",
    [
        lambda: TopK(0),
        lambda: TopK(2.5),
        lambda: TopK(2.0),
        lambda: TopK(True),
        lambda: TopK("2"),
        lambda: TopP(0.0),
        lambda: TopP(1.1),
        lambda: TopP(float("nan")),
        lambda: Threshold(float("nan")),
        lambda: OutputMagnitude(-1.0, np.ones(1)),
        lambda: OutputMagnitude(float("nan"), np.ones(1)),
        lambda: TopK(1)(np.zeros(3)),
        lambda: OutputMagnitude(0.0, np.ones(3))(np.zeros((1, 2))),
    ],
)
def test_impossible_settings_are_usage_errors(build: Any) -> None:
    with pytest.raises(UsageError):
        build()


@pytest.mark.parametrize(
    "selector", [TopK(2), Threshold(0.2), TopP(0.7), OutputMagnitude(0.3, torch.ones(3, dtype=torch.float64))]
)
def test_gradients_reach_exactly_the_scores_that_were_kept(selector: Any) -> None:
    scores = torch.tensor([[0.1, 0.5, 0.4]], dtype=torch.float64, requires_grad=True)
    selector(scores).weights.sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [[0.0, 1.0, 1.0]]
