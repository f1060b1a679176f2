from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.activations import SparseActivations
from runtime.errors import UsageError
from runtime.meter import ActivityMeter, ActivityReport


def metered(*batches: SparseActivations, num_units: int) -> ActivityMeter:
    meter = ActivityMeter(num_units)
    for batch in batches:
        meter.update(batch)
    return meter


@pytest.mark.parametrize("library", ["numpy", "torch"])
@given(activations=st.from_type(SparseActivations))
def test_the_meter_counts_rows_units_and_load(library: str, activations: SparseActivations) -> None:
    batch = activations.torch() if library == "torch" else activations
    meter = metered(batch, num_units=activations.num_units)
    lengths = np.diff(activations.indptr)
    load = np.bincount(activations.units, minlength=activations.num_units)
    assert meter.load.tolist() == load.tolist()
    report = meter.report()
    assert report.rows == activations.num_rows
    assert report.mean_units_per_row == pytest.approx(lengths.mean() if len(lengths) else 0.0)
    assert report.least_units_per_row == (lengths.min() if len(lengths) else 0)
    assert report.most_units_per_row == (lengths.max() if len(lengths) else 0)
    assert report.dead_units == (load == 0).sum()


@given(activations=st.from_type(SparseActivations), data=st.data())
def test_batches_and_merged_meters_add_up_to_the_whole(
    activations: SparseActivations, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, activations.num_rows))
    num_units = activations.num_units
    whole = metered(activations, num_units=num_units)
    in_batches = metered(activations[:cut], activations[cut:], num_units=num_units)
    merged = metered(activations[:cut], num_units=num_units)
    merged.merge(metered(activations[cut:], num_units=num_units))
    for meter in (in_batches, merged):
        assert meter.report() == whole.report()
        assert meter.load.tolist() == whole.load.tolist()


def test_entropy_is_log_of_the_units_when_even_and_zero_when_collapsed() -> None:
    even = SparseActivations.from_rows([([unit], [1.0]) for unit in range(4)], 4)
    collapsed = SparseActivations.from_rows([([2], [1.0])] * 3, 4)
    assert metered(even, num_units=4).report().entropy == pytest.approx(np.log(4))
    assert metered(collapsed, num_units=4).report() == ActivityReport(3, 4, 1.0, 1, 1, 0.0, 3, 1.0)


def test_an_unused_meter_reports_zeros_that_json_can_hold() -> None:
    report = ActivityMeter(3).report()
    assert json.loads(json.dumps(asdict(report)))["dead_units"] == 3
    assert report.entropy == report.mean_units_per_row == report.highest_load == 0.0


def test_another_number_of_units_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="4 units came to a meter of 3"):
        ActivityMeter(3).update(SparseActivations.empty(1, 4))
    with pytest.raises(UsageError, match="cannot join"):
        ActivityMeter(3).merge(ActivityMeter(4))
