"""One text in the making."""

from __future__ import annotations

import secrets
from collections import Counter
from typing import Any

import torch

from moe.generation.engine.blocks import NOTHING, Key
from moe.generation.engine.request import Request
from moe.generation.engine.step_tokens import Span
from moe.generation.engine.submitted import Event, Finish, Submitted, TokenLogprobs, Usage
from moe.generation.text import Pieces
from moe.seed import MOST_SEED


class Sequence:
    """A choice of a request: its tokens, its place in the cache, and what its reader was told.

    Attributes:
        tokens: ids, of the prompt and of what was generated.
        computed: of these, from the start, whose keys and values are in the cache.
        blocks: that hold them, and those that are to come next.
        keys: of its full blocks.
        cached: tokens that were in the cache when it first had its turn; None before.
        cancelled: set from any thread.
        finish: why it ended; None while it goes on.
    """

    def __init__(
        self,
        request: Request,
        choice: int,
        submitted: Submitted,
        *,
        max_tokens: int,
        ends: frozenset[int],
        tokenizer: Any,
    ) -> None:
        self.request = request
        self.choice = choice
        self.submitted = submitted
        self.tokens = list(request.prompt)
        self.computed = 0
        self.blocks: list[int] = []
        self.keys: list[Key] = []
        self.cached: int | None = None
        self.cancelled = False
        self.finish: Finish | None = None
        self.generated: Counter[int] = Counter()
        seed = secrets.randbits(32) if request.seed is None else request.seed + choice
        self.random = torch.Generator().manual_seed(seed % (MOST_SEED + 1))
        self._most = len(request.prompt) + max_tokens
        self._ends = frozenset() if request.ignore_end else ends
        self._pieces = Pieces(tokenizer, request.prompt, request.stop)

    @property
    def pending(self) -> int:
        """Tokens that the model has not seen; after all of them the next is chosen."""
        return len(self.tokens) - self.computed

    @property
    def last_key(self) -> Key:
        return self.keys[-1] if self.keys else NOTHING

    def span(self, count: int) -> Span:
        """The next `count` of its pending tokens."""
        return Span(self.tokens[self.computed : self.computed + count], self.computed, self.blocks)

    def add(
        self,
        token: int,
        logprobs: TokenLogprobs | None,
        experts: list[list[int]] | None,
        at: float,
    ) -> None:
        """Take the next token, and tell the reader."""
        self.tokens.append(token)
        self.generated[token] += 1
        text = ""
        if token in self._ends:
            self.finish = "end"
        elif token in self.request.stop_tokens:
            self.finish = "stop"
        else:
            text = "".join(self._pieces.after(token))
            if self._pieces.stopped:
                self.finish = "stop"
            elif len(self.tokens) == self._most:
                self.finish = "length"
        if self.finish is not None:
            text += "".join(self._pieces.rest())
        usage = None if self.finish is None else self.usage()
        self.submitted.add(Event(self.choice, token, text, logprobs, experts, self.finish, usage, at))

    def end(self, finish: Finish, at: float) -> None:
        """End without a token."""
        self.finish = finish
        text = "".join(self._pieces.rest())
        self.submitted.add(Event(self.choice, None, text, None, None, finish, self.usage(), at))

    def usage(self) -> Usage:
        prompt = len(self.request.prompt)
        return Usage(prompt, self.cached or 0, len(self.tokens) - prompt)
