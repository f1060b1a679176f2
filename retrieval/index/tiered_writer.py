"""Writes the tiers layout: two passes over the documents, in memory bounded by one window."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from retrieval.index.arrays import ArrayFolderWriter
from retrieval.index.impact_codec import (
    LARGEST_CODE,
    ImpactCodec,
    codec_dtype,
    encode_impacts,
    step_for,
)
from retrieval.index.tiered_postings import GROUP_DOCUMENTS, TIER_SHARES, term_dtype
from runtime.activations import SparseActivations
from runtime.progress import Advance

Windows = Callable[[], Iterator[SparseActivations]]

MUCH_COARSER = 4
SAMPLE_POSTINGS = 1 << 22
"""Where tiers begin is judged by the documents of about so many postings; all of them in a smaller segment."""

PIECE_POSTINGS = 1 << 20
"""What takes another array as long as the postings is done in pieces of so many."""


def write_tiers(
    folder: ArrayFolderWriter,
    windows: Windows,
    postings: int,
    num_units: int,
    codec: ImpactCodec,
    least_step: float = 0.0,
    advance: Advance | None = None,
) -> tuple[int, int]:
    """Write postings into the segment `folder`; returns the numbers of documents and postings.

    Args:
        windows: gives the documents of each window as rows; called twice.
        postings: about how many there are.
        least_step: of 8-bit impacts, the step that some have been rounded to already; it is kept if it is not much
            coarser than needed, so that they are not rounded again.
        advance: called with the number of documents done since the last call.
    """
    census = _Census(num_units, stride=max(1, postings // SAMPLE_POSTINGS))
    for window in windows():
        census.add(window)
        del window  # before the next one is built
    plan = census.plan()
    step = step_for(census.largest, census.are_whole) if codec == "uint8" else 1.0
    if codec == "uint8" and step < least_step <= MUCH_COARSER * step:
        step = least_step
    del census  # its sample is as large as a window

    def append(name: str, dtype: type, values: NDArray[Any]) -> None:
        folder.array(name, dtype).append(values)

    run_lengths = np.zeros(plan.num_runs, np.int64)
    run_largest = np.zeros(plan.num_runs, np.float32)
    run_starts: list[NDArray[np.uint32]] = []
    rows = total = groups = 0
    for name in ("window.documents", "window.postings", "row.starts", "residual.starts"):
        append(name, np.int64, np.zeros(1, np.int64))
    for window in windows():
        stored = _encoded(np.asarray(window.weights, np.float32), codec, step)
        inverted = _invert(window, stored, plan, run_lengths, run_largest, np.float32(step))
        run_starts.append(inverted.run_starts)
        append("posting.places", np.uint16, inverted.places)
        append("posting.impacts", codec_dtype(codec), inverted.impacts)
        append("row.starts", np.int64, window.indptr[1:] + total)
        for start in range(0, window.nnz, PIECE_POSTINGS):
            terms = plan.term_of_unit[window.units[start : start + PIECE_POSTINGS]]
            append("row.terms", term_dtype(len(plan.units)), terms)
        append("row.impacts", codec_dtype(codec), stored)
        append("residual.impacts", np.uint8, inverted.residuals)
        rows += window.num_rows
        total += window.nnz
        groups += inverted.residuals.size
        append("window.documents", np.int64, np.array([rows]))
        append("window.postings", np.int64, np.array([total]))
        append("residual.starts", np.int64, np.array([groups]))
        if advance:
            advance(window.num_rows)
        del window, stored, inverted
    append("segment.steps", np.float32, np.array([step, plan.residual_step]))
    append("term.units", np.uint32, plan.units)
    append("term.runs", np.uint32, plan.term_runs)
    append("run.lengths", np.uint32, run_lengths)
    append("run.starts", np.uint32, np.array(run_starts, np.uint32).reshape(len(run_starts), -1).T.ravel())
    append("run.largest", np.float32, run_largest)
    append("residual.slots", np.int32, plan.residual_slots)
    for name, dtype in (
        ("posting.places", np.uint16),
        ("residual.impacts", np.uint8),
    ):
        append(name, dtype, np.zeros(0, dtype))
    for name in ("posting.impacts", "row.impacts"):
        append(name, codec_dtype(codec), np.zeros(0))
    append("row.terms", term_dtype(len(plan.units)), np.zeros(0))
    return rows, total


def _encoded(impacts: NDArray[np.float32], codec: ImpactCodec, step: float) -> NDArray[Any]:
    """What `encode_impacts` gives, without its temporaries at full length."""
    if codec == "float32":
        return impacts
    stored: NDArray[Any] = np.empty(len(impacts), codec_dtype(codec))
    for start in range(0, len(impacts), PIECE_POSTINGS):
        piece = slice(start, start + PIECE_POSTINGS)
        stored[piece] = encode_impacts(impacts[piece], codec, step)
    return stored


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which terms there are, and where their tiers begin.

    Attributes:
        units: int64 ``[terms]``, ascending.
        term_of_unit: int32 ``[num_units]``, -1 for units that no document has.
        term_runs: int64 ``[terms + 1]``.
        thresholds: uint8 ``[runs]``: a posting belongs to the first run of its term whose threshold its code (in
            steps of `residual_step`) exceeds; 0 for the last one.
        residual_slots: int32 ``[terms]``.
        residual_step: step of the codes that thresholds and residuals are in.
    """

    units: NDArray[np.int64]
    term_of_unit: NDArray[np.int32]
    term_runs: NDArray[np.int64]
    thresholds: NDArray[np.uint8]
    residual_slots: NDArray[np.int32]
    residual_step: float

    @property
    def num_runs(self) -> int:
        return int(self.term_runs[-1])

    @property
    def num_residual(self) -> int:
        return int(self.residual_slots.max(initial=-1)) + 1


class _Census:
    """Counts units, and keeps a sample of the documents to judge impacts by."""

    def __init__(self, num_units: int, stride: int) -> None:
        self.largest = 0.0
        self.are_whole = True
        self._frequency = np.zeros(num_units, np.int64)
        self._stride = stride
        self._rows = 0
        self._units: list[NDArray[np.int32]] = []
        self._impacts: list[NDArray[np.float32]] = []

    def add(self, window: SparseActivations) -> None:
        units, impacts = np.asarray(window.units), np.asarray(window.weights, np.float32)
        for start in range(0, len(units), PIECE_POSTINGS):
            piece = units[start : start + PIECE_POSTINGS]
            self._frequency += np.bincount(piece, minlength=len(self._frequency))
            part = impacts[start : start + PIECE_POSTINGS]
            self.are_whole = self.are_whole and bool((part == np.rint(part)).all())
        self.largest = max(self.largest, float(impacts.max(initial=0)))
        if self._stride > 1:
            first = -self._rows % self._stride
            sample = window[np.arange(first, window.num_rows, self._stride)]
            units, impacts = sample.units, sample.weights
        self._rows += window.num_rows
        self._units.append(units)
        self._impacts.append(impacts)

    def plan(self) -> _Plan:
        units = np.flatnonzero(self._frequency)
        frequency = self._frequency[units]
        term_of_unit = np.full(len(self._frequency), -1, np.int32)
        term_of_unit[units] = np.arange(len(units))
        caps = np.array([max(1, self._rows // share) for share in TIER_SHARES], np.int64)
        tiers = 1 + (frequency[:, None] > caps).sum(axis=1)
        term_runs = np.concatenate([np.zeros(1, np.int64), np.cumsum(tiers)])
        has_residual = tiers == len(TIER_SHARES) + 1
        slots = np.where(has_residual, np.cumsum(has_residual) - 1, -1).astype(np.int32)
        step = step_for(self.largest, self.are_whole)
        codes = np.concatenate(
            [np.zeros(0, np.uint8), *(_encoded(impacts, "uint8", step) for impacts in self._impacts)]
        )
        sampled = np.concatenate([np.zeros(0, np.int32), *self._units])
        thresholds = _thresholds(term_of_unit[sampled], codes, frequency, term_runs, caps)
        return _Plan(units, term_of_unit, term_runs, thresholds, slots, step)


@numba.njit(nogil=True, cache=True)
def _thresholds(
    terms: NDArray[np.int32],
    codes: NDArray[np.uint8],
    frequency: NDArray[np.int64],
    term_runs: NDArray[np.int64],
    caps: NDArray[np.int64],
) -> NDArray[np.uint8]:
    """The smallest code that each tier's postings exceed, so that tiers hold as many as they may."""
    thresholds = np.zeros(term_runs[-1], np.uint8)
    slots = np.full(len(frequency), -1, np.int64)
    several = 0
    for term in range(len(frequency)):
        if term_runs[term + 1] - term_runs[term] > 1:
            slots[term] = several
            several += 1
    histograms = np.zeros((several, LARGEST_CODE + 1), np.int64)
    for place in range(len(terms)):
        if slots[terms[place]] >= 0:
            histograms[slots[terms[place]], codes[place]] += 1
    for term in range(len(frequency)):
        if slots[term] < 0:
            continue
        histogram = histograms[slots[term]]
        sampled = histogram.sum()
        above, code = 0, LARGEST_CODE
        for tier in range(term_runs[term + 1] - term_runs[term] - 1):
            room = caps[tier] * sampled // frequency[term]
            while code > 0 and above + histogram[code] <= room:
                above += histogram[code]
                code -= 1
            thresholds[term_runs[term] + tier] = code
    return thresholds


@dataclass(frozen=True, slots=True)
class _InvertedWindow:
    run_starts: NDArray[np.uint32]
    places: NDArray[np.uint16]
    impacts: NDArray[Any]
    residuals: NDArray[np.uint8]


def _invert(
    window: SparseActivations,
    stored: NDArray[Any],
    plan: _Plan,
    run_lengths: NDArray[np.int64],
    run_largest: NDArray[np.float32],
    step: np.float32,
) -> _InvertedWindow:
    """The postings of one window by run; adds to the runs' lengths and raises their largest impacts."""
    residuals = np.zeros((plan.num_residual, -(-window.num_rows // GROUP_DOCUMENTS)), np.uint8)
    starts, places, impacts = _invert_kernel(
        window.indptr,
        np.asarray(window.units),
        np.asarray(window.weights, np.float32),
        stored,
        plan.term_of_unit,
        plan.term_runs,
        plan.thresholds,
        plan.residual_slots,
        np.float32(plan.residual_step),
        step,
        run_lengths,
        run_largest,
        residuals,
    )
    return _InvertedWindow(starts, places, impacts, residuals.reshape(-1))


@numba.njit(nogil=True, cache=True)
def _invert_kernel(
    indptr: NDArray[np.int64],
    units: NDArray[np.int32],
    weights: NDArray[np.float32],
    stored: NDArray[Any],
    term_of_unit: NDArray[np.int32],
    term_runs: NDArray[np.int64],
    thresholds: NDArray[np.uint8],
    residual_slots: NDArray[np.int32],
    residual_step: np.float32,
    step: np.float32,
    run_lengths: NDArray[np.int64],
    run_largest: NDArray[np.float32],
    residuals: NDArray[np.uint8],
) -> tuple[NDArray[np.uint32], NDArray[np.uint16], NDArray[Any]]:
    num_runs = term_runs[-1]
    starts = np.zeros(num_runs + 1, np.uint32)
    runs = np.empty(len(units), np.uint32)
    for row in range(len(indptr) - 1):
        for posting in range(indptr[row], indptr[row + 1]):
            term = term_of_unit[units[posting]]
            impact = np.float32(stored[posting]) * step
            # Rounded as `encode_impacts` does, for the tiers; rounded up, for the bounds.
            code = max(np.float32(1), np.rint(weights[posting] / residual_step))
            run, last = term_runs[term], term_runs[term + 1] - 1
            while run < last and code <= thresholds[run]:
                run += 1
            runs[posting] = run
            starts[run + 1] += 1
            run_largest[run] = max(run_largest[run], impact)
            if run == last and residual_slots[term] >= 0:
                bound = np.uint8(min(np.float32(LARGEST_CODE), np.ceil(impact / residual_step)))
                group = row // GROUP_DOCUMENTS
                if bound > residuals[residual_slots[term], group]:
                    residuals[residual_slots[term], group] = bound
    for run in range(num_runs):
        run_lengths[run] += starts[run + 1]
        starts[run + 1] += starts[run]
    next_of = starts[:-1].copy()
    places = np.empty(len(units), np.uint16)
    impacts = np.empty(len(units), stored.dtype)
    documents = len(indptr) - 1
    groups = (documents + GROUP_DOCUMENTS - 1) // GROUP_DOCUMENTS
    for member in range(GROUP_DOCUMENTS):
        for group in range(groups):
            row = group * GROUP_DOCUMENTS + member
            if row >= documents:
                break
            for posting in range(indptr[row], indptr[row + 1]):
                run = runs[posting]
                places[next_of[run]] = member * groups + group
                impacts[next_of[run]] = stored[posting]
                next_of[run] += 1
    return starts, places, impacts
