"""What is asked of an engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from moe.generation.penalties import Penalties
from moe.generation.sampling import Sampling
from moe.seed import require_seed
from runtime.errors import LexpertError, UsageError


class QueueFullError(LexpertError):
    """As many requests wait as an engine takes; try again later."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, and how to go on from it.

    Attributes:
        prompt: ids, at least one.
        max_tokens: at most so many are generated; None goes on to the end of the context.
        sampling: how tokens are chosen.
        penalties: what is done to logits before.
        seed: of the choice; 0 to 2³² - 1, or None for another one each time. Choices after the first take the
            next seeds.
        stop: the text ends before the first of these that appears in it.
        stop_tokens: ids after which nothing follows, beside the model's own.
        ignore_end: go on after the model's own end tokens.
        choices: texts that are generated from the prompt.
        logprobs: with each token its log probability, and so many of the most probable ones at its place; None
            leaves them out. They are the model's own, before temperature and penalties.
        return_routing: with each token the experts of the pass that it was chosen after.
    """

    prompt: list[int]
    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    penalties: Penalties = field(default_factory=Penalties)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    ignore_end: bool = False
    choices: int = 1
    logprobs: int | None = None
    return_routing: bool = False

    def __post_init__(self) -> None:
        if not self.prompt:
            raise UsageError("the prompt has no tokens; give some text to go on from")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}, but at least 1 token must be generated")
        if self.seed is not None:
            require_seed(self.seed)
        if "" in self.stop:
            raise UsageError("a stop string is empty; leave it out to stop nowhere")
        if self.choices < 1:
            raise UsageError(f"{self.choices} choices are asked for, but at least 1 must be")
        if self.logprobs is not None and self.logprobs < 0:
            raise UsageError(f"logprobs is {self.logprobs}, but must be 0 or more")
