"""How much an engine takes on at a time."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.errors import UsageError


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Bounds of memory and of a step's time.

    Attributes:
        cache_bytes: of keys and values of all layers together.
        block_tokens: tokens of a block, in which the cache is given out and shared.
        max_running: sequences of a step.
        max_waiting: sequences that wait for their turn; beyond it, requests are refused.
        prompt_tokens: tokens of prompts in a step in which other sequences go on. It bounds how much longer than
            others such a step takes.
        lone_prompt_tokens: the same in a step in which no sequence goes on.
        prefix_cache: whether what prompts begin with is kept, and shared by requests.
    """

    cache_bytes: int = 1 << 30
    block_tokens: int = 16
    max_running: int = 32
    max_waiting: int = 1024
    prompt_tokens: int = 32
    lone_prompt_tokens: int = 256
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        for name in (
            "cache_bytes", "block_tokens", "max_running", "max_waiting", "prompt_tokens", "lone_prompt_tokens",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, but must be at least 1")
