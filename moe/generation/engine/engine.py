"""The engine: a model, a thread that computes step after step, and requests that join and leave between them."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Thread
from typing import Any, Self

from moe.generation.decoder_folder import DecoderFolder
from moe.generation.engine.batched_model import BatchedModel
from moe.generation.engine.core import EngineCore, Step
from moe.generation.engine.request import QueueFullError, Request
from moe.generation.engine.sequence import Sequence
from moe.generation.engine.settings import EngineSettings
from moe.generation.engine.submitted import Submitted
from runtime.errors import LexpertError
from runtime.histogram import SIZES, Histogram

logger = logging.getLogger("moe.generation")

CLOSED = "the engine is closed; open another one"


@dataclass(frozen=True, slots=True)
class EngineState:
    """Counts since the engine was opened, and what it holds now.

    Attributes:
        running: sequences that are computed.
        waiting: sequences that wait for their turn.
        blocks: of the cache.
        held_blocks: of these, in use by sequences.
        prompt_tokens: of sequences that have started, with the cached ones.
        cached_tokens: of these.
        generated_tokens: since the start.
        preempted: how often a sequence gave its memory to others.
        steps: since the start.
        step_seconds: from a step's plan to its last event.
        step_sequences: for how many sequences steps computed one token.
        step_prompt_tokens: how many tokens they computed beside, of sequences with several.
    """

    running: int
    waiting: int
    blocks: int
    held_blocks: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    preempted: int
    steps: int
    step_seconds: Histogram
    step_sequences: Histogram
    step_prompt_tokens: Histogram


class Engine:
    """Continues prompts for many requests at once; `submit` and `Submitted` may be used from any thread.

    A step computes one token of each running sequence and a bounded number of tokens of prompts, so that a long
    prompt holds up nobody. Greedy tokens are those of transformers' own `generate`, whatever else is computed, up to
    logits that rounding cannot tell apart.

    Attributes:
        tokenizer: of transformers.
        context: most tokens of a prompt and what follows it together.
        vocabulary: ids are below.
        routing: what the model's routers did in the last seconds; empty for a dense model.
        router_layers: names of the layers with experts, from the bottom.

    Args:
        model: a decoder of transformers, in evaluation mode. Its attention is replaced.
        tokenizer: its tokenizer.

    Raises:
        UsageError: the model cannot be computed for several requests at once, or the cache is smaller than a block.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: EngineSettings | None = None) -> None:
        self.settings = settings or EngineSettings()
        self._core = EngineCore(BatchedModel(model), tokenizer, self.settings)
        self.tokenizer = tokenizer
        self.context = self._core.context
        self.vocabulary = self._core.vocabulary
        self.routing = self._core.routing
        self.router_layers = self._core.router_layers
        self._new: deque[list[Sequence]] = deque()
        self._in_queue = 0
        self._cancelled = False
        self._closed = False
        self._changed = Condition()
        self._steps = 0
        self._step_seconds = Histogram()
        self._step_sequences, self._step_prompt_tokens = Histogram(SIZES), Histogram(SIZES)
        self._thread = Thread(target=self._work, name="generation", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        folder: str | Path,
        settings: EngineSettings | None = None,
        *,
        dtype: str = "auto",
        device: str | None = None,
    ) -> Engine:
        """Load a folder as `DecoderFolder.load` does, and raise what it raises."""
        loaded = DecoderFolder.load(folder, dtype=dtype, device=device)
        return cls(loaded.model, loaded.tokenizer, settings)

    def submit(self, request: Request) -> Submitted:
        """Put a request into the queue.

        Raises:
            UsageError: the prompt fills the context, or an id is none of the vocabulary.
            QueueFullError: as many wait as the engine takes.
            LexpertError: the engine is closed.
        """
        sequences, submitted = self._core.prepare(request, self._cancel)
        with self._changed:
            if self._closed:
                raise LexpertError(CLOSED)
            if self._in_queue + request.choices > self.settings.max_waiting:
                raise QueueFullError(
                    f"{self._in_queue} sequences wait, and at most {self.settings.max_waiting} may; try again later"
                )
            self._in_queue += request.choices
            self._new.append(sequences)
            self._changed.notify()
        return submitted

    def state(self) -> EngineState:
        """What the engine does, at about this moment."""
        core, scheduler = self._core, self._core.scheduler
        with self._changed:
            return EngineState(
                running=len(scheduler.running),
                waiting=self._in_queue,
                blocks=core.pool.num_blocks,
                held_blocks=core.pool.num_blocks - core.pool.available,
                prompt_tokens=scheduler.prompt_tokens,
                cached_tokens=scheduler.cached_tokens,
                generated_tokens=core.generated_tokens,
                preempted=scheduler.preempted,
                steps=self._steps,
                step_seconds=self._step_seconds,
                step_sequences=self._step_sequences,
                step_prompt_tokens=self._step_prompt_tokens,
            )

    def close(self) -> None:
        """Stop after the step that is being computed; readers of what is not done get an error."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cancel(self, sequences: list[Sequence]) -> None:
        with self._changed:
            for sequence in sequences:
                sequence.cancelled = True
            self._cancelled = True
            self._changed.notify()

    def _work(self) -> None:
        core = self._core
        try:
            while self._take_new():
                step = core.step()
                with self._changed:
                    self._count_queue()
                    if step is not None:
                        self._count(step)
        except Exception:
            # A fault of ours, after which nobody should wait for what will not come.
            logger.exception("the engine failed")
            with self._changed:
                self._closed = True
                for sequences in self._new:
                    core.scheduler.add(sequences)
        core.fail_all(LexpertError(CLOSED))

    def _take_new(self) -> bool:
        """Wait for something to do, and take in what came; False when the engine is closed."""
        core = self._core
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._new or not core.is_idle)
            for sequences in self._new:
                core.scheduler.add(sequences)
            self._new.clear()
            if self._cancelled:
                self._cancelled = False
                core.drop_cancelled()
            self._count_queue()
            return not self._closed

    def _count(self, step: Step) -> None:
        self._steps += 1
        self._step_seconds.observe(step.seconds)
        self._step_sequences.observe(step.sequences)
        self._step_prompt_tokens.observe(step.prompt_tokens)

    def _count_queue(self) -> None:
        self._in_queue = len(self._core.scheduler.waiting) + sum(len(each) for each in self._new)
