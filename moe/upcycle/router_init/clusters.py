"""A router whose experts start with equal shares of a sample text: balanced clusters of its hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe.upcycle.balanced_clusters import balanced_clusters
from moe.upcycle.router_init.hidden_means import like_random_rows
from runtime.errors import UsageError


def cluster_rows(texts: Sequence[Tensor], num_rows: int, seed: int) -> Tensor:
    """Rows of a router that point to the centres of balanced clusters, float32 ``[num_rows, width]``.

    Args:
        texts: of each text its hidden states before the feed-forward block, float32 ``[tokens, width]``.

    Raises:
        UsageError: fewer tokens than rows.
    """
    hidden = torch.cat(list(texts))
    if len(hidden) < num_rows:
        raise UsageError(
            f"the sample text has {len(hidden)} tokens, fewer than the {num_rows} clusters; give a longer one"
        )
    clusters = torch.from_numpy(balanced_clusters(hidden.numpy(), num_rows, seed))
    return like_random_rows(torch.stack([hidden[clusters == row].mean(0) for row in range(num_rows)]), hidden)
