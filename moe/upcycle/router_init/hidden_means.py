"""A router that sends each expert tokens like those of its share of a sample text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe.upcycle.router_init.random import STD
from runtime.errors import UsageError


def hidden_means_rows(texts: Sequence[Tensor], num_rows: int) -> Tensor:
    """Rows of a router from the hidden states of texts, float32 ``[num_rows, width]``.

    With a text for each row, a row is the mean over its text; otherwise the tokens of all texts are cut into
    equal runs, one for each row.

    Args:
        texts: of each text its hidden states before the feed-forward block, float32 ``[tokens, width]``.

    Raises:
        UsageError: fewer tokens than rows.
    """
    hidden = torch.cat(list(texts))
    if len(hidden) < num_rows:
        raise UsageError(
            f"the sample text has {len(hidden)} tokens, fewer than the {num_rows} rows of a router; "
            "give a longer one"
        )
    parts = texts if len(texts) == num_rows else hidden.tensor_split(num_rows)
    return like_random_rows(torch.stack([part.mean(0) for part in parts]), hidden)


def like_random_rows(means: Tensor, hidden: Tensor) -> Tensor:
    """Rows that point from the mean of all tokens to each of `means`, with logits as spread as a random router's.

    What all tokens share would only shift all logits alike. And a row as long as a hidden state gives logits of
    dozens, with which the router starts, and stays, one-hot.
    """
    centre = hidden.mean(0)
    rows = torch.nn.functional.normalize(means - centre, dim=1)
    spread = ((hidden - centre) @ rows.T).std()
    wanted = STD * hidden.norm(dim=1).square().mean().sqrt()
    return rows * (wanted / spread) if spread > 0 else rows * 0
