"""Steps over many sequences, one at a time: what `moe.generation.engine.engine` runs in its thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from moe.generation.engine.batched_model import BatchedModel
from moe.generation.engine.blocks import BlockPool
from moe.generation.engine.cache import KeyValueCache
from moe.generation.engine.choosing import choose_tokens
from moe.generation.engine.request import Request
from moe.generation.engine.routing_window import RoutingWindow
from moe.generation.engine.scheduler import Scheduler, Turn
from moe.generation.engine.sequence import Sequence
from moe.generation.engine.settings import EngineSettings
from moe.generation.engine.submitted import Submitted
from moe.generation.text import end_tokens
from runtime.errors import LexpertError, UsageError

logger = logging.getLogger("moe.generation")


@dataclass(frozen=True, slots=True)
class Step:
    """What a step did.

    Attributes:
        seconds: from its plan to its last event.
        sequences: for which it computed one token.
        prompt_tokens: that it computed beside, of sequences with several.
    """

    seconds: float
    sequences: int
    prompt_tokens: int


class EngineCore:
    """The model, its cache and the sequences; for one thread, except `prepare`.

    Attributes:
        tokenizer: of transformers.
        context: most tokens of a prompt and what follows it together.
        vocabulary: ids are below.
        routing: what the model's routers did in the last seconds; empty for a dense model.
        scheduler: which sequences run and wait.
        pool: blocks of the cache.
        generated_tokens: since the start.

    Args:
        model: what computes the tokens.
        tokenizer: of transformers.

    Raises:
        UsageError: the cache is smaller than a block.
    """

    def __init__(self, model: BatchedModel, tokenizer: Any, settings: EngineSettings) -> None:
        self.tokenizer = tokenizer
        self.routing = RoutingWindow()
        self.generated_tokens = 0
        self._model = model
        self._ends = end_tokens(model.model)
        size = settings.block_tokens
        block_bytes = self._model.cache_bytes_per_token * size
        blocks = settings.cache_bytes // block_bytes
        if not blocks:
            raise UsageError(
                f"a block of the cache takes {block_bytes:,} bytes, but cache_bytes is {settings.cache_bytes:,}"
            )
        self.vocabulary = int(model.model.get_input_embeddings().num_embeddings)
        self.context = min(self._model.context or blocks * size, blocks * size)
        self._cache = KeyValueCache(blocks, size)
        self.pool = BlockPool(blocks)
        self.scheduler = Scheduler(self.pool, settings)

    @property
    def router_layers(self) -> list[str]:
        """Names of the layers with experts, from the bottom."""
        return self._model.router_layers

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to compute."""
        return not (self.scheduler.running or self.scheduler.waiting)

    def prepare(
        self, request: Request, cancel: Callable[[list[Sequence]], None]
    ) -> tuple[list[Sequence], Submitted]:
        """Sequences of a request, not yet in the queue; from any thread.

        Args:
            cancel: called with them when the reader cancels.

        Raises:
            UsageError: the prompt fills the context, or an id is none of the vocabulary.
        """
        self._check(request)
        room = self.context - len(request.prompt)
        sequences: list[Sequence] = []
        submitted = Submitted(request.choices, lambda: cancel(sequences))
        sequences.extend(
            Sequence(
                request,
                choice,
                submitted,
                max_tokens=min(request.max_tokens or room, room),
                ends=self._ends,
                tokenizer=self.tokenizer,
            )
            for choice in range(request.choices)
        )
        return sequences, submitted

    def drop_cancelled(self) -> None:
        """End the sequences that are marked so."""
        for sequence in [*self.scheduler.running, *self.scheduler.waiting]:
            if sequence.cancelled:
                self.scheduler.release(sequence)
                sequence.end("cancelled", time.perf_counter())

    def fail_all(self, error: Exception) -> None:
        """End everything with an error."""
        self._fail([*self.scheduler.running, *self.scheduler.waiting], error)

    def step(self) -> Step | None:
        """Compute the next tokens and tell their readers; None if there is nothing to compute."""
        started = time.perf_counter()
        turns = self.scheduler.plan()
        if not turns:
            return None
        for sequence, _ in turns:
            timings = sequence.submitted.timings
            timings.started = timings.started or started
        try:
            logits, experts = self._model.compute(
                [sequence.span(count) for sequence, count in turns], self._cache
            )
        except Exception as error:
            logger.exception("a step of %d sequences failed", len(turns))
            failure = error if isinstance(error, LexpertError) else LexpertError("the model failed at a step")
            self._fail([sequence for sequence, _ in turns], failure)
        else:
            self.scheduler.computed(turns)
            self.routing.add(experts)
            self._hand_out(turns, logits, experts)
        counts = [count for _, count in turns]
        ones = counts.count(1)
        return Step(time.perf_counter() - started, ones, sum(counts) - ones)

    def _check(self, request: Request) -> None:
        count = len(request.prompt)
        if count >= self.context:
            raise UsageError(
                f"the prompt has {count} tokens, but with what follows at most {self.context} fit; shorten it"
            )
        for ids, where in ((request.prompt, "the prompt"), (request.penalties.bias, "the logit bias")):
            wrong = next((token for token in ids if not 0 <= token < self.vocabulary), None)
            if wrong is not None:
                raise UsageError(f"{where} has the id {wrong}, but ids are 0 to {self.vocabulary - 1}")

    def _hand_out(self, turns: list[Turn], logits: Tensor, experts: dict[str, tuple[Tensor, int]]) -> None:
        """Choose the next tokens, and tell the readers."""
        rows = [row for row, (sequence, _) in enumerate(turns) if not sequence.pending]
        if not rows:
            return
        sequences = [turns[row][0] for row in rows]
        chosen = choose_tokens(logits if len(rows) == len(turns) else logits[rows], sequences)
        wanted = any(sequence.request.return_routing for sequence in sequences)
        routes = _routes(turns, experts) if wanted else {}
        now = time.perf_counter()
        for row, sequence, choice in zip(rows, sequences, chosen, strict=True):
            if sequence not in self.scheduler.running:
                continue  # another choice of its request has failed
            if isinstance(choice, LexpertError):
                self._fail([sequence], choice)
                continue
            token, logprobs = choice
            route = routes.get(row) if sequence.request.return_routing else None
            sequence.add(token, logprobs, route, now)
            self.generated_tokens += 1
            if sequence.finish is not None:
                self.scheduler.release(sequence)

    def _fail(self, sequences: list[Sequence], error: Exception) -> None:
        """End requests with an error, and all of their choices."""
        failed = {id(sequence.submitted) for sequence in sequences}
        scheduler = self.scheduler
        for sequence in [*scheduler.running, *scheduler.waiting]:
            if id(sequence.submitted) in failed:
                scheduler.release(sequence)
                sequence.submitted.fail(error)


def _routes(turns: list[Turn], experts: dict[str, tuple[Tensor, int]]) -> dict[int, list[list[int]]]:
    """By row of `turns`, the experts of its last token, layer by layer."""
    layers = [units.tolist() for units, _ in experts.values()]
    routes, end = {}, 0
    for row, (_, count) in enumerate(turns):
        end += count
        routes[row] = [units[end - 1] for units in layers]
    return routes
