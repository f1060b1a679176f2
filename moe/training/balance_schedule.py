"""The coefficient of the balance loss, step by step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinearSchedule:
    """From one strength to another in a straight line.

    A router that starts at random gains from a strong balance at first, which later stands in the way of experts
    that differ; one that was started from hidden states has it the other way round.

    Attributes:
        first: at step 0.
        last: at the last of `steps`, and from there on.
        steps: how many there are, at least 1.
    """

    first: float
    last: float
    steps: int

    def __call__(self, step: int) -> float:
        if self.steps == 1:
            return self.first
        share = min(1.0, step / (self.steps - 1))
        return self.first * (1 - share) + self.last * share
