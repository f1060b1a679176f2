"""The one data type of the project: a batch of rows that each light up few of many units."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    Array = NDArray[Any] | torch.Tensor
else:
    Array = Any


def is_tensor(array: Any) -> TypeGuard[torch.Tensor]:
    """Whether `array` is a torch tensor, without importing torch."""
    return type(array).__module__.partition(".")[0] == "torch"


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
        if self.indptr.ndim != 1 or len(self.indptr) == 0 or "int64" not in str(self.indptr.dtype):
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
        indptr = np.zeros(len(pairs) + 1, np.int64)
        np.cumsum([len(units) for units, _ in pairs], out=indptr[1:])
        if not pairs:
            return cls.empty(0, num_units)
        return cls(
            indptr, np.concatenate([u for u, _ in pairs]), np.concatenate([w for _, w in pairs]), num_units
        )
