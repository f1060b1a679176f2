"""Which sequences the next step computes, and with which blocks."""

from __future__ import annotations

from collections import deque

from moe.generation.engine.blocks import BlockPool, block_key
from moe.generation.engine.sequence import Sequence
from moe.generation.engine.settings import EngineSettings

Turn = tuple[Sequence, int]
"""A sequence, and how many of its pending tokens the step computes."""


class Scheduler:
    """Sequences wait in the order in which they came, and run until they end.

    A sequence starts when there are blocks for all that it begins with, and takes more as it grows. When none is
    left, the sequence that started last gives its blocks back and waits again, before all others; what it had
    generated is then computed like a prompt.

    Attributes:
        running: in the order in which they started.
        waiting: the others.
        preempted: how often a sequence had to give its blocks back.
        prompt_tokens: of sequences that started, with those that were cached.
        cached_tokens: of these.
    """

    def __init__(self, pool: BlockPool, settings: EngineSettings) -> None:
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.preempted = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self._pool = pool
        self._settings = settings

    def add(self, sequences: list[Sequence]) -> None:
        self.waiting.extend(sequences)

    def release(self, sequence: Sequence) -> None:
        """Forget a sequence, which runs or waits, and give its blocks back."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._give_back(sequence)

    def plan(self) -> list[Turn]:
        """The next step: each sequence that is in the middle of its text, then prompts, as far as they fit.

        Sequences with one token come first.
        """
        growing = self._grow()
        settings = self._settings
        budget = settings.prompt_tokens if growing else settings.lone_prompt_tokens
        turns: list[Turn] = [(sequence, 1) for sequence in growing]
        prompts: list[Turn] = []
        for sequence in self.running:
            if sequence.pending > 1 and budget:
                count = min(sequence.pending, budget)
                budget -= count
                prompts.append((sequence, count))
        while budget and len(self.running) < settings.max_running:
            started = self._start_next()
            if started is None:
                break
            count = min(started.pending, budget)
            budget -= count
            (prompts if count > 1 else turns).append((started, count))
        ones = [turn for turn in prompts if turn[1] == 1]
        return [*turns, *ones, *(turn for turn in prompts if turn[1] > 1)]

    def computed(self, turns: list[Turn]) -> None:
        """Note that a step is done: full blocks can be shared from now on."""
        size = self._settings.block_tokens
        for sequence, count in turns:
            sequence.computed += count
            while len(sequence.keys) < sequence.computed // size:
                self._extend_keys(sequence)
                if self._settings.prefix_cache:
                    place = len(sequence.keys) - 1
                    self._pool.remember(sequence.blocks[place], sequence.keys[place])

    def _grow(self) -> list[Sequence]:
        """Sequences with one pending token, each with a block for it."""
        growing: list[Sequence] = []
        size = self._settings.block_tokens
        for sequence in list(self.running):
            if sequence not in self.running or sequence.pending != 1:
                continue
            while len(sequence.blocks) * size < len(sequence.tokens):
                block = self._pool.take()
                if block is not None:
                    sequence.blocks.append(block)
                elif (last := self._preempt_last()) is sequence:
                    break
                elif last in growing:
                    growing.remove(last)
            if sequence in self.running:
                growing.append(sequence)
        return growing

    def _preempt_last(self) -> Sequence:
        last = self.running.pop()
        self._give_back(last)
        self.preempted += 1
        self.waiting.appendleft(last)
        return last

    def _start_next(self) -> Sequence | None:
        """Start the next sequence that waits, with blocks for all of its tokens; None if it has to wait on."""
        sequence = next((each for each in self.waiting if not self._waits_for_sibling(each)), None)
        if sequence is None:
            return None
        size = self._settings.block_tokens
        shared = self._find_prefix(sequence)
        wanted = -(-len(sequence.tokens) // size) - len(shared)
        kept = sum(self._pool.is_kept(block) for block in shared)
        # One more, so that whoever runs does not take the last block from it at once.
        spare = 1 if self.running else 0
        if wanted + spare > self._pool.available - kept:
            return None
        for block in shared:
            self._pool.share(block)
        own = [self._pool.take() for _ in range(wanted)]
        sequence.blocks = [*shared, *(block for block in own if block is not None)]
        sequence.computed = len(shared) * size
        if sequence.cached is None:
            sequence.cached = sequence.computed
            self.prompt_tokens += len(sequence.request.prompt)
            self.cached_tokens += sequence.computed
        self.waiting.remove(sequence)
        self.running.append(sequence)
        return sequence

    def _waits_for_sibling(self, sequence: Sequence) -> bool:
        """Whether the prompt of another choice is being computed, which then need not be done twice."""
        if not self._settings.prefix_cache or sequence.cached is not None:
            return False
        return any(
            other.submitted is sequence.submitted and other.computed < len(other.request.prompt)
            for other in self.running
        )

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        """Blocks that hold what the sequence begins with; its last token is left, for what follows it is asked."""
        shared: list[int] = []
        sequence.keys.clear()
        if not self._settings.prefix_cache:
            return shared
        for _ in range((len(sequence.tokens) - 1) // self._settings.block_tokens):
            self._extend_keys(sequence)
            block = self._pool.find(sequence.last_key)
            if block is None:
                sequence.keys.pop()
                break
            shared.append(block)
        return shared

    def _extend_keys(self, sequence: Sequence) -> None:
        size = self._settings.block_tokens
        first = len(sequence.keys) * size
        sequence.keys.append(block_key(sequence.last_key, sequence.tokens[first : first + size]))

    def _give_back(self, sequence: Sequence) -> None:
        self._pool.give_back(sequence.blocks)
        sequence.blocks = []
        sequence.keys = []
        sequence.computed = 0
