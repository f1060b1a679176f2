"""What the routers of a running model did in the last seconds."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

import torch
from torch import Tensor

from runtime.activations import SparseActivations
from runtime.errors import UsageError
from runtime.meter import ActivityMeter

LONGEST_S = 600
"""Seconds that are looked back on at most."""

Experts = dict[str, tuple[Tensor, int]]
"""By layer, the experts of each token, ``[tokens, k]``, and out of how many."""


@dataclass(slots=True)
class _Second:
    """What came in one second: passes as they are, until somebody asks or the second is over."""

    number: int
    passes: list[Experts] = field(default_factory=list)
    meters: dict[str, ActivityMeter] = field(default_factory=dict)

    def count(self) -> dict[str, ActivityMeter]:
        for name in self.passes[0] if self.passes else ():
            units = torch.cat([experts[name][0] for experts in self.passes]).cpu()
            meter = self.meters.setdefault(name, ActivityMeter(self.passes[0][name][1]))
            meter.update(SparseActivations.from_topk(units, torch.ones(units.shape), meter.num_units))
        self.passes.clear()
        return self.meters


class RoutingWindow:
    """Counts by seconds, so that any number of them up to `LONGEST_S` can be added up; for several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds: deque[_Second] = deque()
        self._clock = clock
        self._lock = Lock()

    def add(self, experts: Experts) -> None:
        """Count one pass."""
        if not experts:
            return
        now = int(self._clock())
        with self._lock:
            if not self._seconds or self._seconds[-1].number != now:
                if self._seconds:
                    self._seconds[-1].count()
                self._seconds.append(_Second(now))
                while self._seconds[0].number < now - LONGEST_S:
                    self._seconds.popleft()
            self._seconds[-1].passes.append(experts)

    def meters(self, window_s: float) -> dict[str, ActivityMeter]:
        """By layer, from the bottom, the load of the experts in the last `window_s` seconds.

        Raises:
            UsageError: the window is not above 0, or longer than `LONGEST_S`.
        """
        if not 0 < window_s <= LONGEST_S:
            raise UsageError(f"the window is {window_s:g} s, but must be above 0 and up to {LONGEST_S} s")
        since = self._clock() - window_s
        added: dict[str, ActivityMeter] = {}
        with self._lock:
            for second in self._seconds:
                if second.number + 1 > since:
                    for name, meter in second.count().items():
                        added.setdefault(name, ActivityMeter(meter.num_units)).merge(meter)
        return added
