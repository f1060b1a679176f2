"""Load, co-activation and losses of the experts of one layer, added up batch by batch."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from moe.stats.recorder import LayerRouting
from runtime.activations import SparseActivations
from runtime.meter import ActivityMeter, ActivityReport


class LayerActivity:
    """What a layer's router did with all tokens that `update` was given.

    Attributes:
        layer: name of the router's module.
        meter: load of the experts, and how many experts tokens have.
        dropped: entries beyond the experts' capacity.
        co_activation: int64 ``[experts, experts]``, tokens that went to both; on the diagonal, to the one. None
            when it is not counted.
    """

    def __init__(self, layer: str, num_experts: int, *, co_activation: bool = False) -> None:
        self.layer = layer
        self.meter = ActivityMeter(num_experts)
        self.dropped = 0
        self.co_activation: NDArray[np.int64] | None = (
            np.zeros((num_experts, num_experts), np.int64) if co_activation else None
        )
        self._losses: dict[str, float] = {}
        self._batches = 0

    def update(self, routing: LayerRouting) -> None:
        """Add a batch.

        Raises:
            UsageError: it has another number of experts.
        """
        before = self.meter.load
        self.meter.update(routing.gates)
        if routing.capacity is not None:
            beyond = self.meter.load - before - routing.capacity
            self.dropped += int(beyond.clip(min=0).sum())
        if self.co_activation is not None:
            self.co_activation += co_activation(routing.gates)
        for name, loss in routing.losses.items():
            self._losses[name] = self._losses.get(name, 0.0) + float(loss.detach())
        self._batches += 1

    def merge(self, other: LayerActivity) -> None:
        """Add what another one of the same layer has counted, for example that of another process.

        Raises:
            UsageError: it has another number of experts.
        """
        self.meter.merge(other.meter)
        self.dropped += other.dropped
        if self.co_activation is not None and other.co_activation is not None:
            self.co_activation += other.co_activation
        for name, loss in other._losses.items():
            self._losses[name] = self._losses.get(name, 0.0) + loss
        self._batches += other._batches

    @property
    def losses(self) -> dict[str, float]:
        """Mean of each loss over the batches."""
        return {name: total / self._batches for name, total in self._losses.items()}

    @property
    def load(self) -> NDArray[np.float64]:
        """Share of all entries that each expert has, ``[experts]``; zeros before the first batch."""
        return self.meter.load / max(int(self.meter.load.sum()), 1)

    @property
    def evenness(self) -> float:
        """Entropy of the load as a share of the highest one, from 0 (one expert has all) to 1."""
        experts = self.meter.num_units
        return self.meter.report().entropy / math.log(experts) if experts > 1 else 1.0

    @property
    def report(self) -> ActivityReport:
        return self.meter.report()


def co_activation(gates: SparseActivations) -> NDArray[np.int64]:
    """How many tokens have both of two experts: int64 ``[experts, experts]``, symmetric.

    Args:
        gates: torch, ``[tokens, experts]``.
    """
    import torch

    lengths = gates.indptr[1:] - gates.indptr[:-1]
    rows = torch.arange(gates.num_rows, device=gates.units.device).repeat_interleave(lengths)
    # float32 counts exactly up to 2**24 tokens a batch, and its product is the fast one
    member = torch.zeros(gates.num_rows, gates.num_units, device=gates.units.device)
    member[rows, gates.units.long()] = 1
    counts: NDArray[np.int64] = (member.T @ member).round().to(torch.int64).cpu().numpy()
    return counts
