"""Perplexity of language models on a text."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.errors import InputError, UsageError
from runtime.progress import progress


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How well a decoder predicts a text.

    Attributes:
        tokens: that were predicted, all but the first; among them those that separate documents.
        num_bytes: of the text in UTF-8, without what separates documents.
        nats: cross-entropy of all predicted tokens together.
        context: most tokens that a token was predicted from, plus itself.
        least_context: tokens that every token had before it at least, but those at the start of the text.
    """

    tokens: int
    num_bytes: int
    nats: float
    context: int
    least_context: int

    @property
    def per_token(self) -> float:
        return math.exp(min(self.nats / self.tokens, 700.0))

    @property
    def per_byte(self) -> float:
        """Compares models of different vocabularies, where they read the same text."""
        return math.exp(min(self.nats / self.num_bytes, 700.0)) if self.num_bytes else math.inf

    @property
    def bits_per_byte(self) -> float:
        return self.nats / self.num_bytes / math.log(2) if self.num_bytes else math.inf


def read_text(path: Path, tokenizer: Any, most: int | None = None) -> tuple[NDArray[np.int32], int]:
    """Token ids of a text file, and its bytes in UTF-8, for `measure_perplexity`.

    Args:
        path: UTF-8 text, or that compressed by gzip; blank lines separate documents.
        tokenizer: of transformers.
        most: tokens to read; None reads all.

    Raises:
        NotFoundError: the file is missing.
        InputError: it is not UTF-8, or damaged.
    """
    from moe.token_stream import stream_tokens

    ids, num_bytes = array("i"), 0
    with progress("reading text", most, "tokens") as advance:
        for piece in stream_tokens([path], tokenizer):
            room = len(piece.ids) if most is None else most - len(ids)
            if len(piece.ids) > room:
                # the bytes of a part of a document are those that its tokens stand for
                ids.extend(piece.ids[:room])
                num_bytes += round(piece.num_bytes * room / len(piece.ids))
                advance(room)
                break
            ids.extend(piece.ids)
            num_bytes += piece.num_bytes
            advance(len(piece.ids))
            if len(ids) == most:
                break  # before the next batch of documents is cut into tokens for nothing
    return np.array(ids, np.int32), num_bytes


def measure_perplexity(
    model: Any,
    ids: NDArray[np.int32],
    num_bytes: int,
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
) -> Perplexity:
    """Predict each token of a text but the first, once.

    Windows of `context` tokens go over the text in steps of `stride`; of each, the last `stride` tokens count, of the
    first all. A stride of ``context - 1``, the default, gives plain blocks that share one token: cheapest, and tokens
    at the start of a block know little. A small stride gives each token nearly the whole context.

    Args:
        model: a decoder of transformers, in evaluation mode.
        ids: token ids of the text.
        num_bytes: of the text.
        context: tokens of a window; None takes the model's positions, 1,024 at most.
        stride: from 1 to ``context - 1``.
        batch_size: windows that run through the model at once.

    Raises:
        UsageError: context or stride cannot be.
        InputError: the text has fewer than 2 tokens, or an id that the model does not know.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    context = context or min(DEFAULT_CONTEXT, positions or DEFAULT_CONTEXT)
    if context < 2 or (positions is not None and context > positions):
        raise UsageError(f"the context is {context}, but must be 2 to {positions or 'any number of'} tokens")
    stride = stride or context - 1
    if not 1 <= stride < context:
        raise UsageError(f"the stride is {stride}, but must be 1 to {context - 1}, one less than the context")
    if len(ids) < 2:
        raise InputError(f"the text has {len(ids)} tokens, but one is predicted from another; give more text")
    vocabulary = model.get_output_embeddings().weight.shape[0]
    if int(ids.max()) >= vocabulary:
        raise InputError(
            f"the tokenizer gives id {int(ids.max())}, but the model knows {vocabulary}; give the tokenizer that "
            "belongs to it"
        )
    nats = 0.0
    with progress("predicting", len(ids) - 1, "tokens") as advance, torch.inference_mode():
        for batch, counted in _batches(ids, context, stride, batch_size):
            batch = batch.to(model.device)
            logits = model(input_ids=batch, attention_mask=torch.ones_like(batch)).logits
            logits, labels = logits[:, -counted - 1 : -1].float(), batch[:, -counted:]
            nats += float(
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
            )
            advance(labels.numel())
    if not math.isfinite(nats):
        raise InputError(f"the model gives {nats} for the text; its weights are damaged, or overflow")
    least = min(context - stride, len(ids) - 1)
    return Perplexity(len(ids) - 1, num_bytes, nats, min(context, len(ids)), least)


DEFAULT_CONTEXT = 1024


def _batches(
    ids: NDArray[np.int32], context: int, stride: int, batch_size: int
) -> Iterator[tuple[Tensor, int]]:
    """Windows of one length, int64 ``[windows, tokens]``, and how many of the last tokens of each count."""
    tokens = torch.from_numpy(ids.astype(np.int64))
    first = min(context, len(tokens))
    yield tokens[None, :first], first - 1
    ends = range(first + stride, len(tokens) + 1, stride)
    for at in range(0, len(ends), batch_size):
        yield torch.stack([tokens[end - context : end] for end in ends[at : at + batch_size]]), stride
    done = ends[-1] if len(ends) else first
    if done < len(tokens):
        # the rest is shorter than a stride: its window reaches back further instead
        yield tokens[None, -context:], len(tokens) - done
