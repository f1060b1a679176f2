"""What a language model is trained to predict, and how well it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from runtime.errors import UsageError

Loss = Callable[[Any, Tensor, torch.Generator | None], Tensor]
"""Mean cross-entropy, in nats, of what ``(model, ids, draw)`` predicts; `draw` is for what is drawn, None draws from
torch's global generator."""

MASKED_SHARE, MASK_SHARE, RANDOM_SHARE = 0.15, 0.8, 0.1
"""Share of the tokens that are predicted; and of these, that become the mask, or any token (Devlin et al. 2019)."""


def causal_loss(model: Any, ids: Tensor, draw: torch.Generator | None = None) -> Tensor:
    """Of each token but the first, from those before it.

    Labels do not go into the model: what its class adds to the loss by itself stays out.

    Args:
        ids: int64 ``[blocks, length]``.
    """
    del draw
    logits = logits_of(model, ids)[:, :-1]
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def logits_of(model: Any, ids: Tensor) -> Tensor:
    """``[blocks, length, vocabulary]``."""
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    logits: Tensor = output.logits
    return logits


def masked_loss(tokenizer: Any) -> Loss:
    """Of masked tokens, from all others.

    Raises:
        UsageError: the tokenizer has no mask token.
    """
    mask_token = tokenizer.mask_token_id
    if mask_token is None:
        raise UsageError("the tokenizer has no mask token, which a masked language model needs")
    special = torch.tensor(sorted(set(tokenizer.all_special_ids)))
    vocabulary = len(tokenizer)

    def loss(model: Any, ids: Tensor, draw: torch.Generator | None = None) -> Tensor:
        masked, chosen = mask(ids, special, mask_token, vocabulary, draw)
        return torch.nn.functional.cross_entropy(logits_of(model, masked)[chosen].float(), ids[chosen])

    return loss


def mask(
    ids: Tensor, special: Tensor, mask_token: int, vocabulary: int, draw: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Ids with some of them masked, and which ones are to be predicted; at least one is.

    Args:
        ids: int64 ``[blocks, length]``.
        special: ids that are never predicted, unless there are no others.

    Returns:
        int64 and bool, of the shape of `ids`.
    """
    # drawn on the CPU, so that a seed masks the same tokens on every device
    uniform = torch.rand(3, *ids.shape, generator=draw).to(ids.device)
    chance = uniform[0].masked_fill(torch.isin(ids, special.to(ids.device)), 2.0)
    chosen = chance < MASKED_SHARE
    if not bool(chosen.any()):
        chosen = chance == chance.min()
    to_mask = chosen & (uniform[1] < MASK_SHARE)
    to_random = chosen & ~to_mask & (uniform[1] < MASK_SHARE + RANDOM_SHARE)
    random = (uniform[2] * vocabulary).long()
    return torch.where(to_mask, mask_token, torch.where(to_random, random, ids)), chosen
