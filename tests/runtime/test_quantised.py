from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.activations import SparseActivations
from runtime.errors import InputError

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
LARGEST = float(np.finfo(np.float32).max)


def one_row(weights: list[float], dtype: type[np.floating] = np.float32) -> SparseActivations:
    indptr = np.array([0, len(weights)], np.int64)
    return SparseActivations(
        indptr, np.arange(len(weights), dtype=np.int32), np.array(weights, dtype), max(len(weights), 1)
    )


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(weights=st.lists(FLOATS, max_size=8) | st.lists(FLOATS.map(abs), max_size=8))
def test_no_weight_is_off_by_more_than_the_bound(
    library: str, dtype: type[np.floating], weights: list[float]
) -> None:
    activations = one_row(weights, dtype)
    batch = activations.torch() if library == "torch" else activations
    quantised = batch.quantise()
    restored = quantised.dequantise().numpy().weights.astype(np.float64)
    error = np.abs(restored - activations.weights)
    assert restored.dtype == np.float64
    assert (error <= quantised.error_bound).all()
    assert (restored[activations.weights == 0] == 0).all()


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_impacts_use_all_of_uint8_and_signed_weights_int8(library: str) -> None:
    for weights, codes, dtype in [
        ([0.0, 1.0, 2.55], [0, 100, 255], "uint8"),
        ([-1.27, 0.0, 0.5], [-127, 0, 50], "int8"),
    ]:
        batch = one_row(weights)
        quantised = (batch.torch() if library == "torch" else batch).quantise()
        assert quantised.codes.tolist() == codes
        assert str(quantised.codes.dtype).endswith(dtype)
        assert quantised.scale == pytest.approx(0.01)


def test_quantising_shares_units_and_offsets() -> None:
    batch = one_row([1.0, 2.0])
    quantised = batch.quantise()
    assert quantised.units is batch.units
    assert quantised.indptr is batch.indptr
    assert (len(quantised), quantised.nnz, quantised.num_units) == (1, 2, 2)


@pytest.mark.parametrize("weight", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(weight: float) -> None:
    with pytest.raises(InputError, match="finite"):
        one_row([1.0, weight]).quantise()


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("weight", [1e300, -1e300, LARGEST * 1.0000001])
def test_weights_beyond_float32_are_refused(library: str, weight: float) -> None:
    batch = one_row([1.0, weight], np.float64)
    with pytest.raises(InputError, match="the largest float32"):
        (batch.torch() if library == "torch" else batch).quantise()


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weights", [[LARGEST], [-LARGEST], [LARGEST, -LARGEST, 0.0]])
def test_the_largest_weight_stays_finite(
    library: str, dtype: type[np.floating], weights: list[float]
) -> None:
    batch = one_row(weights, dtype)
    restored = (batch.torch() if library == "torch" else batch).quantise().dequantise().numpy().weights
    np.testing.assert_allclose(restored, weights, rtol=1e-6)
