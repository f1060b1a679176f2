"""Dispatch: turn row-major activations into unit-major ones by counting sort.

For retrieval this is the building of an inverted index (unit = term, row = document, the result is the
postings); for a mixture of experts it is the grouping of tokens by expert.
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime.activations import Array, SparseActivations
from runtime.errors import UsageError
from runtime.kernels.registry import kernel


@dataclass(frozen=True, eq=False, slots=True)
class Dispatch:
    """The non-zeros of a batch, unit by unit; rows ascend within a unit.

    Attributes:
        offsets: int64 ``[num_units + 1]``; unit `j` has the entries ``offsets[j]:offsets[j + 1]``.
        rows: row of each entry, ``[kept]``, in the dtype of the units (int64 from 2**31 rows on).
        weights: weight of each entry, ``[kept]``.
        permutation: place of each entry in the activations, int64 ``[kept]``.
        dropped: places in the activations of the non-zeros beyond the capacity, int64, ascending.
        num_rows: number of rows of the activations.
    """

    offsets: Array
    rows: Array
    weights: Array
    permutation: Array
    dropped: Array
    num_rows: int

    @property
    def num_units(self) -> int:
        return len(self.offsets) - 1

    @property
    def load(self) -> Array:
        """Number of entries of each unit, int64 ``[num_units]``."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def inverse(self) -> Array:
        """Entry of each non-zero of the activations, int64 ``[nnz]``; -1 for a dropped one."""
        nnz = len(self.permutation) + len(self.dropped)
        inverse: Array = kernel("invert_permutation", self.permutation)(self.permutation, nnz)
        return inverse


def dispatch(
    activations: SparseActivations, capacity: int | None = None, *, backend: str | None = None
) -> Dispatch:
    """Group the non-zeros of `activations` by unit, in time linear in their number.

    Args:
        activations: the batch; a unit that a row repeats keeps all its entries, in their order.
        capacity: most entries that one unit takes. The entries of the lowest rows are kept, the later ones
            are reported in `Dispatch.dropped`. None keeps all.
        backend: see `runtime.kernels.registry.kernel`.

    Raises:
        UsageError: `capacity` is negative.
        ValueError: a unit is outside ``[0, num_units)``.
    """
    if capacity is not None and capacity < 0:
        raise UsageError(f"capacity is {capacity}, but a unit takes 0 entries or more")
    indptr, units = activations.indptr, activations.units
    run = kernel("dispatch", indptr, units, backend=backend)
    offsets, rows, permutation, dropped = run(indptr, units, activations.num_units, capacity)
    weights = activations.weights[permutation]
    return Dispatch(offsets, rows, weights, permutation, dropped, activations.num_rows)


def transpose(activations: SparseActivations, *, backend: str | None = None) -> SparseActivations:
    """Swap rows and units: the result has a row per unit, in which the former rows ascend.

    This is `dispatch` for who needs neither permutation nor capacity, and takes half of the memory: 10**8
    float32 impacts need 0.8 GB beside the input.

    Raises:
        ValueError: a unit is outside ``[0, num_units)``.
    """
    arrays = activations.indptr, activations.units, activations.weights
    offsets, rows, weights = kernel("transpose", *arrays, backend=backend)(*arrays, activations.num_units)
    return SparseActivations(offsets, rows, weights, num_units=activations.num_rows)
