"""The tiers layout: postings by unit and, within a unit, by impact class; and every document as a row.

What a search needs first lies first. A unit's postings are divided into tiers: the first holds its largest impacts
in the whole segment (one in 2,048 of the segment's documents at most), the next those up to one in 1,024, and so on
to one in 64; the last has all others. Adding up the first tiers of every query unit ranks
documents well enough that few have to be scored from their rows; what the last tiers could still add to a document
is bounded by their largest impact among every 32 documents (`residual`), which makes the search exact.

Windows are as in the windows layout: at most 65,536 documents, so that a *place* in one fits 16 bits. The documents
of a window form groups of 32 consecutive ones; member m of group g has the place m · groups + g, so that what is
looked for in all groups, such as their largest sums, is found by whole vectors of groups.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from retrieval.index.impact_codec import ImpactCodec, codec_dtype, decode_impacts
from retrieval.index.window_postings import WINDOW_DOCUMENTS, Column
from runtime.activations import SparseActivations
from runtime.errors import FormatError

TIER_SHARES = (2048, 1024, 512, 256, 128, 64)
"""A tier, with those before it, holds at most one in so many documents of the segment; the last one has the rest."""
GROUP_DOCUMENTS = 32
"""Documents that share one bound on what the last tiers can add."""


class TieredPostings:
    """The postings of a segment in tiers, memory-mapped.

    Attributes:
        window_documents: int64 ``[windows + 1]``, each window's range of rows.
        window_postings: int64 ``[windows + 1]``, each window's range in the postings.
        steps: float32 ``[2]``, what a stored impact and a residual have to be multiplied by.
        units: uint32 ``[terms]``, the units of the segment, ascending; a place in here is a *term*.
        term_runs: uint32 ``[terms + 1]``, each term's range of runs; a run is a tier of a term.
        run_lengths: uint32 ``[runs]``, postings of a run in all windows.
        run_largest: float32 ``[runs]``, the largest impact of a run.
        run_starts: uint32 ``[runs + 1, windows]``, the postings of each run from the start of its window's; so what a
            query needs of one run lies together for all windows.
        posting_places: uint16 ``[postings]``, places inside the window, ascending in a run.
        posting_impacts: float32 or uint8 ``[postings]``, > 0.
        row_starts: int64 ``[documents + 1]``, each document's range in `row_terms` and `row_impacts`.
        row_terms: uint16, or uint32 where there are more than 65,536 terms; ascending in a row.
        row_impacts: float32 or uint8, > 0.
        residual_slots: int32 ``[terms]``, each term's number among those with a last tier, or -1.
        residual_starts: int64 ``[windows + 1]``, each window's range in `residuals`.
        residuals: uint8, per window ``[terms with a last tier, groups]``: the largest impact of the last tier
            among 32 documents, rounded up to a multiple of its step.
    """

    def __init__(self, column: Column, codec: ImpactCodec, documents: int) -> None:
        """Args: `column` maps the array of a name and dtype."""
        self.window_documents: NDArray[np.int64] = column("window.documents", np.int64)
        self.window_postings: NDArray[np.int64] = column("window.postings", np.int64)
        self.steps: NDArray[np.float32] = column("segment.steps", np.float32)
        self.units: NDArray[np.uint32] = column("term.units", np.uint32)
        self.term_runs: NDArray[np.uint32] = column("term.runs", np.uint32)
        self.run_lengths: NDArray[np.uint32] = column("run.lengths", np.uint32)
        self.run_largest: NDArray[np.float32] = column("run.largest", np.float32)
        self.run_starts: NDArray[np.uint32] = column("run.starts", np.uint32).reshape(
            len(self.run_lengths) + 1, self.num_windows
        )
        self.posting_places: NDArray[np.uint16] = column("posting.places", np.uint16)
        self.posting_impacts: NDArray[Any] = column("posting.impacts", codec_dtype(codec))
        self.row_starts: NDArray[np.int64] = column("row.starts", np.int64)
        self.row_terms: NDArray[Any] = column("row.terms", term_dtype(len(self.units)))
        self.row_impacts: NDArray[Any] = column("row.impacts", codec_dtype(codec))
        self.residual_slots: NDArray[np.int32] = column("residual.slots", np.int32)
        self.residual_starts: NDArray[np.int64] = column("residual.starts", np.int64)
        self.residuals: NDArray[np.uint8] = column("residual.impacts", np.uint8)
        self.num_documents = documents
        self._check()

    def _check(self) -> None:
        """Raise FormatError where offsets do not fit: kernels trust them. Only `verify` reads the large arrays."""
        ends: dict[str, tuple[NDArray[Any], int]] = {
            "window.documents": (self.window_documents, self.num_documents),
            "window.postings": (self.window_postings, len(self.posting_places)),
            "term.runs": (self.term_runs, len(self.run_lengths)),
            "residual.starts": (self.residual_starts, len(self.residuals)),
        }
        for name, (offsets, end) in ends.items():
            if (
                not len(offsets)
                or offsets[0] != 0
                or offsets[-1] != end
                or (offsets[1:] < offsets[:-1]).any()
            ):
                raise FormatError(
                    f"{name} of a segment is damaged; restore the index from a copy or build it again"
                )

    @property
    def num_windows(self) -> int:
        return len(self.window_documents) - 1

    def window_rows(self, window: int, num_units: int) -> SparseActivations:
        """The documents of one window as rows: units ascending; weights are impacts."""
        first, last = self.window_documents[window : window + 2]
        starts = self.row_starts[first : last + 1]
        postings = slice(starts[0], starts[-1])
        units = self.units[self.row_terms[postings]].astype(np.int32)
        return SparseActivations(
            starts - starts[0], units, self._decoded(self.row_impacts[postings]), num_units
        )

    def row(self, row: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The units (ascending) and impacts of one document."""
        postings = slice(self.row_starts[row], self.row_starts[row + 1])
        units = self.units[self.row_terms[postings]].astype(np.int32)
        return units, self._decoded(self.row_impacts[postings])

    def impacts(self, row: int, wanted: NDArray[np.int32]) -> NDArray[np.float32]:
        """The impacts of some units (ascending) in one document, 0 where it does not have them."""
        units, impacts = self.row(row)
        return _impacts_of(units, impacts, wanted)

    def _decoded(self, impacts: NDArray[Any]) -> NDArray[np.float32]:
        return decode_impacts(impacts, float(self.steps[0]))


def term_dtype(terms: int) -> type:
    """The dtype of a row's terms, for the number of terms in the segment."""
    return np.uint16 if terms <= WINDOW_DOCUMENTS else np.uint32


@numba.njit(nogil=True, cache=True)
def _impacts_of(
    units: NDArray[np.int32], impacts: NDArray[np.float32], wanted: NDArray[np.int32]
) -> NDArray[np.float32]:
    found = np.zeros(len(wanted), np.float32)
    place = 0
    for position in range(len(wanted)):
        while place < len(units) and units[place] < wanted[position]:
            place += 1
        if place < len(units) and units[place] == wanted[position]:
            found[position] = impacts[place]
    return found
