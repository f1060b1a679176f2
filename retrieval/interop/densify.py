"""Sparse vectors as short dense ones, by representational slicing (DSR).

Units are cut into slices, and of each slice a vector keeps its largest weight and which unit that was. The score of
two vectors adds up products of weights where both kept the same unit: a lower bound of their dot product, close to it
because few units of a slice are lit at once. For BERT's vocabulary without its unused and special tokens, 768 slices
are of 39 units each (Lin & Lin 2021, "Densifying Sparse Representations for Passage Retrieval by Representational
Slicing"). Slices are strided (units j, j + 768, … make up slice j), so that neighbours in the vocabulary, which often
are alike, do not compete.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.activations import SparseActivations
from runtime.errors import UsageError

SLICES = 768
MOST_IN_SLICE = 256
"""Units of a slice are numbered in one byte."""


@dataclass(frozen=True, eq=False)
class Slices:
    """Which units are kept, and how they are cut.

    Attributes:
        units: int64, ascending: those that some document lights up; all others are dropped.
        count: number of slices.
    """

    units: NDArray[np.int64]
    count: int = SLICES

    def __post_init__(self) -> None:
        if self.count < 1 or self.depth > MOST_IN_SLICE:
            least = -(-len(self.units) // MOST_IN_SLICE)
            raise UsageError(
                f"{len(self.units):,} units cannot be cut into {self.count:,} slices of at most {MOST_IN_SLICE}; "
                f"take {max(least, 1):,} slices or more"
            )

    @property
    def depth(self) -> int:
        """Units of the longest slice."""
        return -(-len(self.units) // max(self.count, 1))

    def densify(self, rows: SparseActivations) -> Densified:
        """Keep the largest weight of each slice; of equal ones that of the lower unit.

        Args:
            rows: weights > 0, units distinct within a row. Units that were dropped are left out.
        """
        places = np.searchsorted(self.units, np.asarray(rows.units, np.int64))
        known = np.flatnonzero(np.append(self.units, -1)[places] == rows.units)
        row = np.repeat(np.arange(rows.num_rows), np.diff(rows.indptr))[known]
        place, weights = places[known], np.asarray(rows.weights, np.float32)[known]
        cell = row * self.count + place % self.count
        order = np.lexsort((place, -weights, cell))
        first = order[np.diff(cell[order], prepend=-1) > 0]
        values = np.zeros((rows.num_rows, self.count), np.float32)
        units = np.zeros((rows.num_rows, self.count), np.uint8)
        values.ravel()[cell[first]] = weights[first]
        units.ravel()[cell[first]] = place[first] // self.count
        return Densified(values, units)


@dataclass(frozen=True, eq=False)
class Densified:
    """Vectors of slices.

    Attributes:
        values: float32 ``[rows, slices]``, the largest weight of each slice; 0 where none of its units is lit.
        units: uint8 ``[rows, slices]``, which unit of its slice that was.
    """

    values: NDArray[np.float32]
    units: NDArray[np.uint8]


def gated_scores(query: Densified, documents: Densified) -> NDArray[np.float32]:
    """Σ over slices of [same unit] · value · value, float32 ``[documents]``; `query` has one row."""
    same = query.units == documents.units
    scores: NDArray[np.float32] = np.where(same, documents.values, 0).astype(np.float32) @ query.values[0]
    return scores
