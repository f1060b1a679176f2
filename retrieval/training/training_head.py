"""The vocabulary head of SPLADE with gradients: decoder, maximum and activation as one step, in tiles.

The weight of term ``j`` in a text is ``act(max_i logit_ij)`` over its tokens ``i`` (see
`retrieval.encoders.vocabulary_head`). Written plainly, autograd keeps all logits, ``[rows, length, terms]``, and goes
through every one of them again on the way back. But only the token that reaches the maximum has a gradient, and only
where the maximum is above 0: as many entries as a batch has term weights. So the way there keeps the maximum and its
position alone, and the way back touches no other positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from retrieval.encoders.vocabulary_head import Activation, activate
from retrieval.training.head_kernels import gather_gradients, scatter_gradients, update_maxima

TOKENS_PER_TILE = 512
TERMS_PER_TILE = 2048
"""Of a tile of logits on the processor: 4 MiB."""

DEVICE_LOGITS = 1 << 26
"""Logits of a tile elsewhere, where a few large products are faster than many small ones."""


def plain_max_terms(
    padded: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation
) -> Tensor:
    """The formula as it is written, for autograd. Reference of `max_pooled_terms`.

    Of equal maxima the first token gets the gradient.

    Args:
        padded: ``[rows, length, width]``, at least one token long.
        mask: bool ``[rows, length]``, whether there is a token.

    Returns:
        float32 ``[rows, terms]``.
    """
    logits = torch.nn.functional.linear(padded, weight, bias).float()
    highest = logits.masked_fill(~mask.unsqueeze(-1), float("-inf")).max(dim=1).values.relu()
    weights = highest.log1p()
    return weights.log1p() if activation == "log1p_relu" else weights


def max_pooled_terms(
    hidden: Tensor, lengths: Sequence[int], weight: Tensor, bias: Tensor | None, activation: Activation
) -> Tensor:
    """Term weights of rows of tokens, with gradients for everything that is multiplied.

    Equals `plain_max_terms` within rounding, as do its gradients. Under autocast the products run in its dtype.
    Beside arguments, results and gradients, this holds one tile of logits, and for each row and term a maximum and
    its position.

    Args:
        hidden: ``[sum(lengths), width]``, the decoder's input for the tokens of all rows, one row after the other,
            without padding.
        lengths: tokens of each row; a row without tokens has weight 0 everywhere.
        weight: of the decoder, ``[terms, width]``.
        bias: ``[terms]`` or None.

    Returns:
        float32 ``[len(lengths), terms]``, all ≥ 0.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    terms: Tensor = _MaxPooledTerms.apply(hidden, weight, bias, tuple(lengths), activation)
    return terms


class _MaxPooledTerms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lengths: tuple[int, ...],
        activation: Activation,
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            maxima = _maxima_on_cpu if hidden.device.type == "cpu" else _maxima_on_device
            highest, positions = maxima(hidden.detach(), lengths, weight.detach())
            if bias is not None:
                highest += bias  # the same for every token, so it commutes with the maximum
            terms = activate(highest, activation)
        ctx.save_for_backward(hidden, weight, positions, terms)
        ctx.activation, ctx.bias_dtype = activation, None if bias is None else bias.dtype
        return terms

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, positions, terms = ctx.saved_tensors
        # d log1p(x) / dx = 1 / (1 + x) = exp(-y), and the same again for the second log1p
        inner = torch.expm1(terms) if ctx.activation == "log1p_relu" else terms
        slope = torch.exp(-(terms + inner)) if ctx.activation == "log1p_relu" else torch.exp(-terms)
        gradient = (gradients[0].float() * slope).masked_fill_(terms <= 0, 0.0)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        for_hidden = for_weight = None
        if needs_hidden or needs_weight:
            products = _gradients_on_cpu if hidden.device.type == "cpu" else _gradients_on_device
            for_hidden, for_weight = products(gradient, positions, hidden, weight, needs_hidden, needs_weight)
        for_bias = gradient.sum(0).to(ctx.bias_dtype) if needs_bias else None
        return for_hidden, for_weight, for_bias, None, None


def _maxima_on_cpu(hidden: Tensor, lengths: Sequence[int], weight: Tensor) -> tuple[Tensor, Tensor]:
    """Highest logit, float32 ``[rows, terms]``, and its token, int32, -1 in rows without tokens."""
    rows, terms = len(lengths), len(weight)
    highest = torch.full((rows, terms), float("-inf"))
    positions = torch.full((rows, terms), -1, dtype=torch.int32)
    row_of_token = torch.repeat_interleave(torch.arange(rows), torch.tensor(lengths, dtype=torch.int64))
    buffer = hidden.new_empty(min(TOKENS_PER_TILE, max(len(hidden), 1)) * min(TERMS_PER_TILE, terms))
    for start in range(0, len(hidden), TOKENS_PER_TILE):
        tokens = hidden[start : start + TOKENS_PER_TILE]
        owners = row_of_token[start : start + TOKENS_PER_TILE].numpy()
        for first in range(0, terms, TERMS_PER_TILE):
            part = weight[first : first + TERMS_PER_TILE]
            logits = buffer[: len(tokens) * len(part)].view(len(tokens), len(part))
            torch.mm(tokens, part.t(), out=logits)
            update_maxima(logits.float().numpy(), owners, start, first, highest.numpy(), positions.numpy())
    return highest, positions


def _maxima_on_device(hidden: Tensor, lengths: Sequence[int], weight: Tensor) -> tuple[Tensor, Tensor]:
    """As `_maxima_on_cpu`, in operations of torch alone: rows are padded, a few at a time."""
    rows, terms = len(lengths), len(weight)
    highest = hidden.new_full((rows, terms), float("-inf"), dtype=torch.float32)
    positions = torch.full((rows, terms), -1, dtype=torch.int32, device=hidden.device)
    ends = list(accumulate(lengths))
    longest = max([*lengths, 1])
    terms_at_once = max(1, min(terms, DEVICE_LOGITS // (longest * 8)))
    rows_at_once = max(1, DEVICE_LOGITS // (longest * terms_at_once))
    for top in range(0, rows, rows_at_once):
        some = list(lengths[top : top + rows_at_once])
        if not any(some):
            continue
        length = max(some)
        starts = torch.tensor([ends[top + i] - n for i, n in enumerate(some)], device=hidden.device)
        at = torch.arange(length, device=hidden.device)
        mask = at < torch.tensor(some, device=hidden.device).unsqueeze(1)
        tokens = hidden[(starts.unsqueeze(1) + at).masked_fill_(~mask, 0)]
        for first in range(0, terms, terms_at_once):
            logits = tokens @ weight[first : first + terms_at_once].t()
            found, token = logits.masked_fill_(~mask.unsqueeze(-1), float("-inf")).max(dim=1)
            into = slice(top, top + len(some)), slice(first, first + terms_at_once)
            highest[into] = found.float()
            positions[into] = (token + starts.unsqueeze(1)).int()
    return highest, positions


def _gradients_on_cpu(
    gradient: Tensor, positions: Tensor, hidden: Tensor, weight: Tensor, of_hidden: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    entries = gradient.numpy(), positions.numpy()
    threads = torch.get_num_threads()
    for_hidden = for_weight = None
    if of_hidden:
        for_hidden = torch.zeros(hidden.shape)
        scatter_gradients(*entries, weight.float().contiguous().numpy(), for_hidden.numpy(), threads)
    if of_weight:
        for_weight = torch.zeros(weight.shape)
        gather_gradients(*entries, hidden.float().contiguous().numpy(), for_weight.numpy(), threads)
    return (
        None if for_hidden is None else for_hidden.to(hidden.dtype),
        None if for_weight is None else for_weight.to(weight.dtype),
    )


def _gradients_on_device(
    gradient: Tensor, positions: Tensor, hidden: Tensor, weight: Tensor, of_hidden: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    row, term = torch.nonzero(gradient, as_tuple=True)
    token = positions[row, term].long()
    values = gradient[row, term]
    shape = len(hidden), len(weight)
    for_hidden = for_weight = None
    if of_hidden:
        entries = torch.sparse_coo_tensor(torch.stack((token, term)), values, shape, check_invariants=False)
        for_hidden = torch.sparse.mm(entries.coalesce(), weight.float()).to(hidden.dtype)
    if of_weight:
        entries = torch.sparse_coo_tensor(
            torch.stack((term, token)), values, shape[::-1], check_invariants=False
        )
        for_weight = torch.sparse.mm(entries.coalesce(), hidden.float()).to(weight.dtype)
    return for_hidden, for_weight
