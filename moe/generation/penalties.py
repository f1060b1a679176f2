"""What is taken from or added to logits before a token is chosen from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from runtime.errors import UsageError


@dataclass(frozen=True, slots=True)
class Penalties:
    """Repetition as in CTRL (Keskar et al. 2019), presence and frequency as OpenAI defines them, and a bias.

    Attributes:
        repetition: logits of tokens of the prompt or the text so far are divided by it if positive, and else
            multiplied; 1 changes nothing.
        presence: taken from the logits of tokens that were generated before.
        frequency: the same, once for each time.
        bias: added to the logit of each of these ids.
    """

    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.repetition < math.inf:
            raise UsageError(f"the repetition penalty is {self.repetition}, but must be above 0")
        for name in ("presence", "frequency"):
            if not math.isfinite(getattr(self, name)):
                raise UsageError(f"the {name} penalty is {getattr(self, name)}, but must be a number")
        if not all(math.isfinite(value) for value in self.bias.values()):
            raise UsageError("the logit bias of a token is not a number")

    @property
    def are_none(self) -> bool:
        """Whether logits stay as they are."""
        return self.repetition == 1 and not (self.presence or self.frequency or self.bias)

    def apply(self, logits: Tensor, prompt: Iterable[int], generated: Mapping[int, int]) -> Tensor:
        """float32 ``[vocabulary]``, a copy.

        Args:
            logits: ``[vocabulary]`` of one position.
            prompt: its ids.
            generated: how often each id came after it.
        """
        logits = logits.to(torch.float32, copy=True)
        if self.repetition != 1:
            seen = torch.tensor(sorted({*prompt, *generated}), device=logits.device)
            scores = logits[seen]
            logits[seen] = torch.where(scores > 0, scores / self.repetition, scores * self.repetition)
        if generated and (self.presence or self.frequency):
            ids = torch.tensor(list(generated), device=logits.device)
            counts = torch.tensor(list(generated.values()), device=logits.device, dtype=torch.float32)
            logits[ids] -= counts * self.frequency + self.presence
        if self.bias:
            ids = torch.tensor(list(self.bias), device=logits.device)
            logits[ids] += torch.tensor(list(self.bias.values()), device=logits.device)
        return logits
