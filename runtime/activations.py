"""The one data type of the project: a batch of rows that each light up few of many units."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from runtime.errors import UsageError

if TYPE_CHECKING:
    import torch

    from runtime.quantised import QuantisedActivations

Array = Any
"""A NumPy array or a torch tensor; a union of the two would need a cast wherever one of them is meant."""


def is_tensor(array: Any) -> TypeGuard[torch.Tensor]:
    """Whether `array` is a torch tensor (a parameter too), without importing torch."""
    if isinstance(array, np.ndarray):  # as nearly always; the rest takes as long as a small search
        return False
    kind: type = type(array)
    return _is_of_torch(kind)


@cache
def _is_of_torch(kind: type) -> bool:
    return any(cls.__module__.partition(".")[0] == "torch" for cls in kind.__mro__)


@dataclass(frozen=True, eq=False, slots=True)
class SparseActivations:
    """Sparse rows in CSR form, over NumPy arrays or torch tensors, never copied on the way in.

    Row `i` lights up ``units[indptr[i]:indptr[i + 1]]`` with the weights at the same places. A row is a
    document, a query or a token; a unit is a vocabulary term, an expert or a neuron. Within a row the units
    may come in any order and may repeat; a repeated unit means the sum of its weights (`coalesce` merges
    them and sorts).

    Attributes:
        indptr: int64 ``[num_rows + 1]``, non-decreasing, starting at 0. Always 64 bits: 2**31 non-zeros are
            an ordinary index.
        units: int32 or int64 ``[nnz]``, each in ``[0, num_units)``.
        weights: floating or integer ``[nnz]``.
        num_units: width of the dense matrix that the rows stand for.
    """

    indptr: Array
    units: Array
    weights: Array
    num_units: int

    def __post_init__(self) -> None:
        dtype = self.indptr.dtype
        is_int64 = dtype == np.int64 if isinstance(dtype, np.dtype) else str(dtype) == "torch.int64"
        if self.indptr.ndim != 1 or len(self.indptr) == 0 or not is_int64:
            raise ValueError("indptr must be a one-dimensional int64 array of num_rows + 1 offsets")
        if self.units.shape != self.weights.shape or self.units.ndim != 1:
            raise ValueError(
                f"units {tuple(self.units.shape)} and weights {tuple(self.weights.shape)} "
                "must be one-dimensional and equally long"
            )
        if int(self.indptr[0]) != 0 or int(self.indptr[-1]) != len(self.units):
            raise ValueError(
                f"indptr runs from {int(self.indptr[0])} to {int(self.indptr[-1])}, "
                f"but must run from 0 to the {len(self.units)} units"
            )

    @property
    def num_rows(self) -> int:
        return len(self.indptr) - 1

    @property
    def nnz(self) -> int:
        return len(self.units)

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        """Yield ``(units, weights)`` of each row, as views."""
        for start, end in zip(self.indptr[:-1].tolist(), self.indptr[1:].tolist(), strict=True):
            yield self.units[start:end], self.weights[start:end]

    def __getitem__(self, rows: int | slice | Array | Sequence[int]) -> SparseActivations:
        """The batch of some rows: one (an int), a range (a slice) or those of an index array or mask.

        An int or a slice of step 1 shares `units` and `weights`, and a slice of all rows is the batch itself; anything
        else copies the rows it names.

        Raises:
            IndexError: a row that is not there.
        """
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self.num_rows)
            if step == 1:
                is_all = start == 0 and stop >= self.num_rows
                return self if is_all else self._range(start, max(start, stop))
            rows = range(start, stop, step)
        elif hasattr(rows, "__index__") and getattr(rows, "ndim", 0) == 0:
            row = operator.index(rows)
            if not -self.num_rows <= row < self.num_rows:
                raise IndexError(f"row {row} of a batch of {self.num_rows}")
            return self._range(row % self.num_rows, row % self.num_rows + 1)
        return self._take(rows)

    def _range(self, start: int, stop: int) -> SparseActivations:
        first, last = int(self.indptr[start]), int(self.indptr[stop])
        indptr = self.indptr[start : stop + 1] - first
        return SparseActivations(indptr, self.units[first:last], self.weights[first:last], self.num_units)

    def _take(self, rows: Any) -> SparseActivations:
        from runtime.kernels.registry import kernel

        index = rows if hasattr(rows, "dtype") else np.array(list(rows) or np.zeros(0, np.int64))
        arrays = self.indptr, self.units, self.weights
        indptr, units, weights = kernel("take_rows", *arrays)(*arrays, index)
        return SparseActivations(indptr, units, weights, self.num_units)

    @classmethod
    def empty(cls, num_rows: int, num_units: int) -> SparseActivations:
        """Rows that light up nothing (NumPy, int32 units, float32 weights)."""
        indptr = np.zeros(num_rows + 1, np.int64)
        return cls(indptr, np.zeros(0, np.int32), np.zeros(0, np.float32), num_units)

    @classmethod
    def from_rows(
        cls, rows: Iterable[tuple[Sequence[int], Sequence[float]]], num_units: int
    ) -> SparseActivations:
        """Build from ``(units, weights)`` pairs, one a row (NumPy, int32 units, float32 weights)."""
        pairs = [(np.asarray(units, np.int32), np.asarray(weights, np.float32)) for units, weights in rows]
        if not pairs:
            return cls.empty(0, num_units)
        indptr = np.array(list(accumulate((len(units) for units, _ in pairs), initial=0)), np.int64)
        return cls(
            indptr, np.concatenate([u for u, _ in pairs]), np.concatenate([w for _, w in pairs]), num_units
        )

    @classmethod
    def from_dense(cls, dense: Array) -> SparseActivations:
        """Keep the non-zeros of ``[num_rows, num_units]``: int32 units, ascending, and the weights' own dtype."""
        if dense.ndim != 2:
            raise ValueError(f"dense activations have 2 dimensions, not {dense.ndim}")
        return cls.from_mask(dense, dense != 0)

    @classmethod
    def from_mask(cls, dense: Array, mask: Array) -> SparseActivations:
        """Keep the entries of ``[num_rows, num_units]`` where the boolean `mask` of that shape is true."""
        from runtime.kernels.registry import kernel

        indptr, units, weights = kernel("from_mask", dense, mask)(dense, mask)
        return cls(indptr, units, weights, dense.shape[1])

    @classmethod
    def from_topk(cls, units: Array, weights: Array, num_units: int) -> SparseActivations:
        """View a router's output, ``[num_rows, k]`` each, as CSR; contiguous arrays are shared."""
        if units.ndim != 2 or units.shape != weights.shape:
            raise ValueError(
                f"units {tuple(units.shape)} and weights {tuple(weights.shape)} must both be [rows, k]"
            )
        num_rows, k = units.shape
        if is_tensor(units):
            import torch

            indptr: Array = torch.arange(num_rows + 1, dtype=torch.int64, device=units.device) * k
        else:
            indptr = np.arange(num_rows + 1, dtype=np.int64) * k
        return cls(indptr, units.reshape(num_rows * k), weights.reshape(num_rows * k), num_units)

    @staticmethod
    def concat(batches: Iterable[SparseActivations]) -> SparseActivations:
        """Put the rows of several batches one after the other.

        The result is as wide as the widest: a vocabulary that grows between batches only adds units.

        Raises:
            UsageError: there is no batch, so that width and kind of array are unknown.
        """
        batches = list(batches)
        if not batches:
            raise UsageError("concat got no batch; use SparseActivations.empty(0, num_units) for none")
        ends = [0]
        indptrs = [batches[0].indptr[:1]]
        for batch in batches:
            indptrs.append(batch.indptr[1:] + ends[-1])
            ends.append(ends[-1] + batch.nnz)
        return SparseActivations(
            _concatenate(indptrs),
            _concatenate([batch.units for batch in batches]),
            _concatenate([batch.weights for batch in batches]),
            max(batch.num_units for batch in batches),
        )

    def to_dense(self) -> Array:
        """``[num_rows, num_units]``; repeated units add up, integers as int64 so that none overflows."""
        from runtime.kernels.registry import kernel

        arrays = self.indptr, self.units, self.weights
        dense: Array = kernel("to_dense", *arrays)(*arrays, self.num_units)
        return dense

    def transpose(self) -> SparseActivations:
        """Swap rows and units; see `runtime.dispatch.transpose`."""
        from runtime.dispatch import transpose

        return transpose(self)

    def coalesce(self) -> SparseActivations:
        """Sort each row by unit and merge repeated units into the sum of their weights.

        Weights are added one after the other in the order in which they stand, on every backend. Integer
        sums are int64. A batch that needs nothing is returned as it is.
        """
        from runtime.kernels.registry import kernel

        arrays = self.indptr, self.units, self.weights
        if kernel("is_coalesced", *arrays)(self.indptr, self.units):
            return self
        indptr, units, weights = kernel("coalesce", *arrays)(*arrays)
        return SparseActivations(indptr, units, weights, self.num_units)

    def quantise(self) -> QuantisedActivations:
        """Weights in 8 bits; see `runtime.quantised.QuantisedActivations`."""
        from runtime.quantised import quantise

        return quantise(self)

    def numpy(self) -> SparseActivations:
        """The batch over NumPy arrays, shared where the tensors are on the CPU.

        Gradients stay behind. bfloat16, which NumPy does not have, becomes float32.
        """
        if not is_tensor(self.indptr):
            return self
        import torch

        weights = self.weights.detach() if is_tensor(self.weights) else torch.as_tensor(self.weights)
        if weights.dtype == torch.bfloat16:
            weights = weights.float()
        units = torch.as_tensor(self.units)
        return SparseActivations(
            self.indptr.cpu().numpy(), units.cpu().numpy(), weights.cpu().numpy(), self.num_units
        )

    def torch(self, device: torch.device | str | None = None) -> SparseActivations:
        """The batch over torch tensors on `device`, shared where it is (None: where it is, or the CPU)."""
        import torch

        indptr, units, weights = (
            torch.as_tensor(array, device=device) for array in (self.indptr, self.units, self.weights)
        )
        return SparseActivations(indptr, units, weights, self.num_units)


def _concatenate(arrays: list[Any]) -> Array:
    if any(is_tensor(array) for array in arrays):
        import torch

        return torch.cat(arrays)
    return np.concatenate(arrays)
