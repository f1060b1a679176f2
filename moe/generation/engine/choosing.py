"""The next token of each of several sequences, from their logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moe.generation.engine.sequence import Sequence
from moe.generation.engine.submitted import TokenLogprobs
from runtime.errors import InputError

Chosen = tuple[int, TokenLogprobs | None]


def choose_tokens(logits: Tensor, sequences: list[Sequence]) -> list[Chosen | InputError]:
    """Choose for each sequence as it asks, with its own random numbers, whatever the others ask.

    Args:
        logits: ``[sequences, vocabulary]``.

    Returns:
        For each sequence its token, or the error that its logits are.
    """
    values, tokens = logits.max(-1)
    best: list[int] = tokens.tolist()
    highest: list[float] = values.tolist()
    chosen: list[Chosen | InputError] = []
    for row, sequence in enumerate(sequences):
        request = sequence.request
        try:
            token = best[row]
            plain = request.penalties.are_none and math.isfinite(highest[row])
            if not (plain and request.sampling.greedy):
                token = _choose(logits[row], sequence)
            chosen.append((token, _logprobs(logits[row], token, request.logprobs)))
        except InputError as error:
            chosen.append(error)
    return chosen


def _choose(logits: Tensor, sequence: Sequence) -> int:
    request = sequence.request
    if not request.penalties.are_none:
        logits = request.penalties.apply(logits, request.prompt, sequence.generated)
    return request.sampling.choose(logits, sequence.random)


def _logprobs(logits: Tensor, token: int, count: int | None) -> TokenLogprobs | None:
    if count is None:
        return None
    logarithms = torch.log_softmax(logits.float(), -1)
    top = logarithms.topk(min(count, len(logarithms)))
    pairs = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return TokenLogprobs(float(logarithms[token]), pairs)
