"""What Hypothesis draws for a `SparseActivations`: few rows and units, so that the odd cases are frequent."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from runtime.activations import SparseActivations


@st.composite
def sparse_activations(draw: st.DrawFn) -> SparseActivations:
    """Empty rows, empty batches, one unit and repeated units; weights are eighths, whose sums are exact."""
    num_units = draw(st.integers(1, 8))
    rows = draw(st.lists(st.lists(st.integers(0, num_units - 1), max_size=6), max_size=6))
    units = np.array([unit for row in rows for unit in row], draw(st.sampled_from([np.int32, np.int64])))
    eighths = draw(st.lists(st.integers(-40, 40), min_size=len(units), max_size=len(units)))
    weights = (np.array(eighths, np.float64) / 8).astype(draw(st.sampled_from([np.float32, np.float64])))
    indptr = np.cumsum([0] + [len(row) for row in rows]).astype(np.int64)
    return SparseActivations(indptr, units, weights, num_units)


st.register_type_strategy(SparseActivations, sparse_activations())
