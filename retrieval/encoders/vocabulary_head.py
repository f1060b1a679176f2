"""The vocabulary head of SPLADE: decoder and pooling fused in tiles, so that the logits never exist at once.

SPLADE weighs term ``j`` of a text with ``w_j = pool_i act(logit_ij)`` over its tokens ``i``: pool is the
maximum (Formal et al. 2021, "SPLADE v2", eq. 3) or the sum (Formal et al. 2021, "SPLADE", eq. 1) and act is
``log(1 + relu(x))`` or, in OpenSearch's models, ``log(1 + log(1 + relu(x)))`` (Geng et al. 2025, eq. 9).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["max", "sum"]
Activation = Literal["relu", "log1p_relu"]
"""``relu``: log1p(relu(x)); ``log1p_relu``: log1p(log1p(relu(x))). The names are sentence-transformers'."""

TOKENS_PER_TILE = 512
TERMS_PER_TILE = 2048


def activate(logits: Tensor, activation: Activation) -> Tensor:
    """Apply the activation in place and return `logits`."""
    logits.relu_().log1p_()
    return logits.log1p_() if activation == "log1p_relu" else logits


def plain_pooled_terms(logits: Tensor, mask: Tensor, pooling: Pooling, activation: Activation) -> Tensor:
    """The formula as it is written: all logits at once. Reference of `pooled_terms`.

    Args:
        logits: ``[rows, length, terms]``.
        mask: ``[rows, length]``, nonzero where there is a token.

    Returns:
        float32 ``[rows, terms]``.
    """
    weights = activate(logits.float().masked_fill(mask.unsqueeze(-1) == 0, 0.0), activation)
    return weights.amax(dim=1) if pooling == "max" else weights.sum(dim=1)


def pooled_terms(
    hidden: Tensor,
    lengths: Sequence[int],
    decoder_weight: Tensor,
    decoder_bias: Tensor | None,
    pooling: Pooling,
    activation: Activation,
) -> Tensor:
    """Term weights of rows of tokens, without ever holding the logits of more than one tile.

    Both steps of the activation are monotone, so the maximum is taken over raw logits, tile by tile, and is
    activated once per row and term at the end; a sum has to activate each logit within its tile. Beside its
    arguments and its result this needs `TOKENS_PER_TILE` × `TERMS_PER_TILE` values, whatever the number of
    rows, their length and the vocabulary.

    Equals `plain_pooled_terms` on the same hidden states within float32 rounding: a few parts in 10⁷ of the
    largest logit (maximum) or of the weight (sum). Tiles only change the shapes of the products, and a bias
    added after the maximum instead of before rounds once in another place.

    Args:
        hidden: ``[sum(lengths), width]``, the decoder's input for the tokens of all rows, one row after the
            other, without padding.
        lengths: number of tokens of each row; a row without tokens has weight 0 everywhere.
        decoder_weight: ``[terms, width]``, in the dtype of `hidden`.
        decoder_bias: ``[terms]`` or None.

    Returns:
        float32 ``[len(lengths), terms]``, all ≥ 0.
    """
    num_terms = len(decoder_weight)
    start = float("-inf") if pooling == "max" else 0.0
    pooled = torch.full((len(lengths), num_terms), start, dtype=torch.float32, device=hidden.device)
    buffer = hidden.new_empty(min(TOKENS_PER_TILE, max(len(hidden), 1)) * min(TERMS_PER_TILE, num_terms))
    for block_start, block_end, pieces in _token_blocks(lengths):
        tokens = hidden[block_start:block_end]
        for first in range(0, num_terms, TERMS_PER_TILE):
            last = min(first + TERMS_PER_TILE, num_terms)
            logits = buffer[: len(tokens) * (last - first)].view(len(tokens), last - first)
            torch.mm(tokens, decoder_weight[first:last].t(), out=logits)
            if pooling == "sum":
                if decoder_bias is not None:
                    logits += decoder_bias[first:last]
                activate(logits, activation)
            for row, begin, end in pieces:
                into = pooled[row, first:last]
                if pooling == "max":
                    torch.maximum(into, logits[begin:end].amax(dim=0), out=into)
                else:
                    into += logits[begin:end].sum(dim=0, dtype=torch.float32)
    if pooling == "sum":
        return pooled
    if decoder_bias is not None:
        pooled += decoder_bias  # the same for every token, so it commutes with the maximum
    return activate(pooled, activation)


def _token_blocks(lengths: Sequence[int]) -> Iterator[tuple[int, int, list[tuple[int, int, int]]]]:
    """Cut all rows' tokens into blocks; yield each block's range and the ``(row, begin, end)`` in it."""
    pieces: list[tuple[int, int, int]] = []
    block_start = filled = 0
    for row, length in enumerate(lengths):
        left = length
        while left:
            taken = min(left, TOKENS_PER_TILE - filled)
            pieces.append((row, filled, filled + taken))
            filled += taken
            left -= taken
            if filled == TOKENS_PER_TILE:
                yield block_start, block_start + filled, pieces
                block_start, filled, pieces = block_start + filled, 0, []
    if filled:
        yield block_start, block_start + filled, pieces
