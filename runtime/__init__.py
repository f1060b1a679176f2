"""Sparse activations, the layer that everything else stands on: rows that each light up few of many units.

Score, select, dispatch, combine: the four steps that an inverted index, a layer of experts and a sparse
feed-forward block have in common. The classes can be imported from here and are loaded when first used; the
functions live in `runtime.dispatch`, `runtime.combine` and `runtime.regularizers`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from runtime.activations import SparseActivations
    from runtime.dispatch import Dispatch
    from runtime.meter import ActivityMeter, ActivityReport
    from runtime.quantised import QuantisedActivations
    from runtime.select import OutputMagnitude, Threshold, TopK, TopP

__all__ = [
    "ActivityMeter",
    "ActivityReport",
    "Dispatch",
    "OutputMagnitude",
    "QuantisedActivations",
    "SparseActivations",
    "Threshold",
    "TopK",
    "TopP",
]

_HOMES = {
    "ActivityMeter": "runtime.meter",
    "ActivityReport": "runtime.meter",
    "Dispatch": "runtime.dispatch",
    "OutputMagnitude": "runtime.select",
    "QuantisedActivations": "runtime.quantised",
    "SparseActivations": "runtime.activations",
    "Threshold": "runtime.select",
    "TopK": "runtime.select",
    "TopP": "runtime.select",
}

__getattr__ = lazy_exports(__name__, _HOMES)
