"""Tokens from a model, one after the other."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from typing import Any

import torch

from moe.generation.sampling import Sampling
from moe.seed import require_seed
from runtime.errors import UsageError

GREEDY = Sampling()


def generate_tokens(
    model: Any,
    prompt: list[int],
    *,
    max_tokens: int,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    end_tokens: Collection[int] = (),
) -> Iterator[int]:
    """Yield the ids that follow a prompt, each as soon as it is chosen.

    The model sees the prompt once, and then one token at a time; keys and values of what it has seen stay in
    transformers' cache. The context of the model ends the generation where `max_tokens` does not.

    Args:
        model: a decoder of transformers with a language-modelling head.
        prompt: ids, at least one.
        max_tokens: at most so many are generated.
        seed: of the choice, where it is not greedy; 0 to 2³² - 1.
        end_tokens: ids after which nothing follows; the one that came is the last that is yielded.

    Raises:
        UsageError: the prompt is empty or fills the context, or the seed cannot be one.
    """
    require_seed(seed)
    if not prompt:
        raise UsageError("the prompt has no tokens; give some text to go on from")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None:
        if len(prompt) >= context:
            raise UsageError(
                f"the prompt has {len(prompt)} tokens and fills the model's context of {context}; shorten it"
            )
        max_tokens = min(max_tokens, context - len(prompt))
    return _tokens(model, prompt, max_tokens, sampling, seed, end_tokens)


def _tokens(
    model: Any, prompt: list[int], max_tokens: int, sampling: Sampling, seed: int, end_tokens: Collection[int]
) -> Iterator[int]:
    random = torch.Generator().manual_seed(seed)
    # Of the prompt, only the last position is needed, and a vocabulary is wide.
    options = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    unseen, cache = prompt, None
    for _ in range(max_tokens):
        # Not around the yield: what the caller does between two tokens is no business of ours.
        with torch.inference_mode():
            ids = torch.tensor([unseen], device=model.device)
            output = model(input_ids=ids, past_key_values=cache, use_cache=True, **options)
            token = sampling.choose(output.logits[0, -1], random)
        yield token
        if token in end_tokens:
            return
        unseen, cache = [token], output.past_key_values
