"""The temperature of a softmax, and how it falls over training."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from runtime.errors import UsageError

Decay = Literal["exponential", "linear"]


class Temperature(torch.nn.Module):
    """τ, from `start` to `end` in `steps` steps, and `end` from then on.

    The training loop calls `set_step` (or `set_steps` for a whole model); a new one is at step 0. Steps are
    saved with the model, so that evaluation and resumed training have the temperature that training ended with.

    Attributes:
        start: at step 0, above 0.
        end: above 0; `start` where nothing is to change.
        steps: at least 1.
        decay: ``"exponential"``, ``start · (end / start)^(t / T)``, or ``"linear"``.
        step: int64 scalar.
    """

    step: Tensor

    def __init__(self, start: float, end: float, steps: int, decay: Decay) -> None:
        super().__init__()
        if not (0 < start < math.inf and 0 < end < math.inf):
            raise UsageError(f"temperatures run from {start} to {end}, but must be above 0 and finite")
        if steps < 1:
            raise UsageError(f"a temperature takes 1 step or more, not {steps}")
        if decay not in get_args(Decay):
            raise UsageError(f"there is no decay {decay!r}; there are {', '.join(get_args(Decay))}")
        self.start, self.end, self.steps, self.decay = start, end, steps, decay
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def set_step(self, step: int) -> None:
        """Go to `step`, 0 or more."""
        if step < 0:
            raise UsageError(f"step is {step}, but steps count from 0")
        self.step.fill_(step)

    def forward(self, logits: Tensor) -> Tensor:
        """``logits / τ``."""
        progress = (self.step / self.steps).clamp(max=1.0)
        if self.decay == "linear":
            return logits / (self.start + (self.end - self.start) * progress)
        return logits / (self.start * (self.end / self.start) ** progress)


def set_steps(model: torch.nn.Module, step: int) -> int:
    """Set the step of every temperature of `model`; returns how many there are."""
    temperatures = [module for module in model.modules() if isinstance(module, Temperature)]
    for temperature in temperatures:
        temperature.set_step(step)
    return len(temperatures)
