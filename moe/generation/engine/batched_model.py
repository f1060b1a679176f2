"""A decoder of transformers that computes new tokens of many sequences in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe.generation.engine import attention
from moe.generation.engine.cache import KeyValueCache
from moe.generation.engine.step_tokens import Span, StepTokens
from moe.stats.recorder import RoutingRecorder
from runtime.errors import UsageError

TRIAL_TOKENS = 12
"""Of each of two sequences that a model must compute as transformers does."""

TRIAL_BLOCK = 8

MOST_OFF = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Norm of the difference of logits over their norm, in the middle of all places; in other dtypes `MOST_OFF_NARROW`."""
MOST_OFF_NARROW = 0.1

ROPES_OF_A_BATCH = ("dynamic", "longrope")
"""Rotary embeddings that depend on the longest sequence of a pass, so that others would change with it."""


class BatchedModel:
    """Puts its attention in the place of the model's own.

    Attributes:
        model: of transformers.
        cache_bytes_per_token: of keys and values, of all layers.
        router_layers: names of the layers with experts.

    Raises:
        UsageError: the model is no decoder that can be computed so, which a trial shows.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = model.device
        self._recorder = RoutingRecorder(model)
        self.router_layers = self._recorder.layers
        self._name = type(model).__name__
        _require_ropes(model)
        self.cache_bytes_per_token = self._try()

    @property
    def context(self) -> int | None:
        """Most positions that the model knows; None where it does not say."""
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return None if most is None else int(most)

    def compute(
        self, spans: list[Span], cache: KeyValueCache
    ) -> tuple[Tensor, dict[str, tuple[Tensor, int]]]:
        """One pass; the keys and values of all new tokens are in `cache` after it.

        Args:
            spans: new tokens of sequences, those of one token first.

        Returns:
            ``[sequences, vocabulary]``, the logits after the last token of each, and by layer with experts the
            experts of all tokens, ``[tokens, k]``, and out of how many.
        """
        step = StepTokens.of(spans, cache, self.device)
        with torch.inference_mode(), self._recorder:
            logits = self._run(step, step.last_rows)
            return logits, self._recorder.take_experts()

    def _run(self, step: StepTokens, rows: Tensor) -> Tensor:
        output = self.model(
            input_ids=step.ids,
            position_ids=step.positions,
            use_cache=False,
            logits_to_keep=rows,
            step_tokens=step,
        )
        logits: Tensor = output.logits[0]
        # Models that do not know `logits_to_keep` give the logits of all rows.
        return logits if len(logits) == len(rows) else logits[rows]

    def _try(self) -> int:
        """Compute two sequences in pieces and in turns, and compare with the model as it comes."""
        length = min(TRIAL_TOKENS, self.context or TRIAL_TOKENS)
        vocabulary = self.model.get_input_embeddings().num_embeddings
        both = [[(7 * place + 3 * number) % vocabulary for place in range(length)] for number in (1, 2)]
        with torch.inference_mode():
            expected = self.model(input_ids=torch.tensor(both, device=self.device), use_cache=False).logits
        attention.register()
        cache = KeyValueCache(4, TRIAL_BLOCK)
        try:
            self.model.set_attn_implementation(attention.NAME)
            found = self._try_in_pieces(both, cache)
        except Exception as error:
            if isinstance(error, MemoryError):
                raise
            reason = str(error).strip().splitlines()[0].rstrip(".") if str(error) else type(error).__name__
            raise UsageError(
                f"{self._name} cannot be computed for several requests at once ({reason}); generate with it one by one"
            ) from error
        expected = torch.stack([expected[number, place] for number, place in found])
        ours = torch.stack(list(found.values()))
        off = (ours.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1)
        if not float(off.median()) <= MOST_OFF.get(ours.dtype, MOST_OFF_NARROW):
            raise UsageError(
                f"{self._name} gives other logits when it is computed for several requests at once (off by "
                f"{float(off.median()):.1%}); generate with it one by one"
            )
        self._require_all_layers(cache)
        return cache.bytes_per_token

    def _try_in_pieces(self, both: list[list[int]], cache: KeyValueCache) -> dict[tuple[int, int], Tensor]:
        """Logits by sequence and position: of prompts in two pieces each, and of tokens one by one."""
        blocks = ([3, 0], [1, 2])
        found: dict[tuple[int, int], Tensor] = {}
        done = [0, 0]
        length = len(both[0])
        for counts in ((2, 0), (3, 2), (1, 3), *((1, 1) for _ in range(length - 6)), (0, 1)):
            turns = [(number, count) for number, count in enumerate(counts) if count]
            turns = [(number, min(count, length - done[number])) for number, count in turns]
            turns = sorted((turn for turn in turns if turn[1] > 0), key=lambda turn: turn[1])
            if not turns:
                continue
            spans = [
                Span(both[number][done[number] : done[number] + count], done[number], blocks[number])
                for number, count in turns
            ]
            step = StepTokens.of(spans, cache, self.device)
            with torch.inference_mode():
                logits = self._run(step, step.last_rows)
            for row, (number, count) in enumerate(turns):
                done[number] += count
                found[number, done[number] - 1] = logits[row]
        return found

    def _require_all_layers(self, cache: KeyValueCache) -> None:
        config = self.model.config.get_text_config()
        layers = int(config.num_hidden_layers)
        if len(cache.layers) != layers:
            raise UsageError(
                f"{self._name} has {layers} layers, of which only {len(cache.layers)} attend in the usual way; "
                "generate with it one by one"
            )


def _require_ropes(model: Any) -> None:
    parameters = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = {
        parameters.get("rope_type"),
        *(each.get("rope_type") for each in parameters.values() if isinstance(each, dict)),
    }
    found = kinds.intersection(ROPES_OF_A_BATCH)
    if found:
        raise UsageError(
            f"{type(model).__name__} has rotary embeddings of the kind {found.pop()!r}, which depend on the longest "
            "request of a batch; generate with it one by one"
        )
