"""The activity meter: how many units rows light up, and how evenly the units are used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.activations import SparseActivations
from runtime.errors import UsageError
from runtime.kernels.registry import kernel


@dataclass(frozen=True, slots=True)
class ActivityReport:
    """Figures of all batches that a meter has seen.

    Attributes:
        rows: number of rows.
        units: number of units.
        mean_units_per_row: 0 where there are no rows; so the next two.
        least_units_per_row: of the emptiest row.
        most_units_per_row: of the fullest row.
        entropy: of the load, in nats; log of the number of units when it is even, 0 when one unit has all.
        dead_units: units that no row lit up.
        highest_load: share of all entries that the busiest unit has.
    """

    rows: int
    units: int
    mean_units_per_row: float
    least_units_per_row: int
    most_units_per_row: int
    entropy: float
    dead_units: int
    highest_load: float


class ActivityMeter:
    """Counts terms, experts or neurons alike, batch by batch; entries count as they are stored.

    Attributes:
        load: int64 ``[num_units]``, how many entries each unit has had.
        num_rows: rows seen.
    """

    def __init__(self, num_units: int) -> None:
        self.load: NDArray[np.int64] = np.zeros(num_units, np.int64)
        self.num_rows = 0
        self._least: int | None = None
        self._most = 0

    @property
    def num_units(self) -> int:
        return len(self.load)

    def update(self, activations: SparseActivations) -> None:
        """Count a batch, over NumPy arrays or tensors of any device.

        Raises:
            UsageError: it has another number of units.
        """
        if activations.num_units != self.num_units:
            raise UsageError(f"a batch of {activations.num_units} units came to a meter of {self.num_units}")
        if not activations.num_rows:
            return
        arrays = activations.indptr, activations.units
        load: Any = kernel("count_units", *arrays)(*arrays, self.num_units)
        lengths: Any = activations.indptr[1:] - activations.indptr[:-1]
        self._add(np.asarray(load.tolist()), activations.num_rows, int(lengths.min()), int(lengths.max()))

    def merge(self, other: ActivityMeter) -> None:
        """Add what another meter has counted, for example that of another process.

        Raises:
            UsageError: it has another number of units.
        """
        if other.num_units != self.num_units:
            raise UsageError(f"a meter of {other.num_units} units cannot join one of {self.num_units}")
        if other._least is not None:
            self._add(other.load, other.num_rows, other._least, other._most)

    def report(self) -> ActivityReport:
        total = int(self.load.sum())
        share = self.load[self.load > 0] / max(total, 1)
        return ActivityReport(
            rows=self.num_rows,
            units=self.num_units,
            mean_units_per_row=total / max(self.num_rows, 1),
            least_units_per_row=self._least or 0,
            most_units_per_row=self._most,
            entropy=float(-(share * np.log(share)).sum()) + 0.0,
            dead_units=int((self.load == 0).sum()),
            highest_load=float(share.max()) if total else 0.0,
        )

    def _add(self, load: NDArray[np.int64], num_rows: int, least: int, most: int) -> None:
        self.load = self.load + load
        self.num_rows += num_rows
        self._least = least if self._least is None else min(self._least, least)
        self._most = max(self._most, most)
