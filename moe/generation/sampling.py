"""How the next token is chosen from logits."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.errors import InputError, UsageError


@dataclass(frozen=True, slots=True)
class Sampling:
    """Temperature, then top-k, then top-p (nucleus; Holtzman et al. 2020), then min-p (Nguyen et al. 2024), as
    transformers orders them.

    Attributes:
        temperature: logits are divided by it; 0, or next to nothing, takes the highest logit, of equal ones the
            first.
        top_k: only so many of the highest logits stay, and those equal to the last of them; None keeps all.
        top_p: only the most probable tokens that together have this probability stay, at least one.
        min_p: only tokens at least this times as probable as the most probable one stay; 0 keeps all.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"the temperature is {self.temperature}, but must be 0 (greedy) or above")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top-k is {self.top_k}, but at least 1 token must stay")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p is {self.top_p}, but must be above 0 and up to 1")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"min-p is {self.min_p}, but must be 0 to 1")

    @property
    def greedy(self) -> bool:
        # What is smaller has no finite reciprocal, and nothing but the highest logit would stay.
        return self.temperature < sys.float_info.min

    def probabilities(self, logits: Tensor) -> Tensor:
        """float32 ``[vocabulary]`` of the logits of one position, which sum to 1.

        Raises:
            InputError: logits are NaN or infinite; single ones may be -∞, which is never chosen.
        """
        logits = logits.float()
        _require_finite(logits)
        if self.greedy:
            highest = torch.zeros_like(logits)
            highest[logits.argmax()] = 1
            return highest
        # In float64 and below 0, so that no temperature makes them overflow.
        logits = ((logits.double() - logits.max()) / self.temperature).float()
        if self.top_k is not None and self.top_k < len(logits):
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[-1], -math.inf)
        if self.top_p < 1:
            descending, order = logits.sort(descending=True, stable=True)
            # What stands before a token decides whether it is still needed; the first always is.
            before = descending.softmax(0).cumsum(0).roll(1)
            before[0] = 0
            logits = logits.index_fill(0, order[before >= self.top_p], -math.inf)
        probabilities = logits.softmax(0)
        if self.min_p > 0:
            probabilities[probabilities < self.min_p * probabilities.max()] = 0
            probabilities /= probabilities.sum()
        return probabilities

    def choose(self, logits: Tensor, random: torch.Generator) -> int:
        """The id of the next token.

        Args:
            logits: ``[vocabulary]`` of the last position.
            random: on the CPU, so that a seed gives the same tokens on every device.
        """
        if self.greedy:
            _require_finite(logits)
            return int(logits.argmax())
        return int(torch.multinomial(self.probabilities(logits.cpu()), 1, generator=random))


def _require_finite(logits: Tensor) -> None:
    highest = float(logits.max())  # NaN where there is one
    if not math.isfinite(highest):
        given = "NaN" if math.isnan(highest) else "infinite logits"
        raise InputError(f"the model gave {given} for the next token; its weights are damaged, or overflow")
