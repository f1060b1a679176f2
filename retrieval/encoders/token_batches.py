"""Batches of texts for a transformer: sorted by length, so that padding is little, within a token budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray


def token_batches(lengths: Sequence[int], token_budget: int, max_rows: int) -> Iterator[NDArray[np.int64]]:
    """Cut texts into batches of similar length, longest first (so that too large a budget fails at once).

    A batch costs its number of rows times its longest text, padding included; a text longer than the budget
    gets a batch of its own.

    Args:
        lengths: number of tokens of each text.
        token_budget: most tokens, padding included, of a batch of more than one text.
        max_rows: most texts of a batch.

    Yields:
        The places of the batch's texts in `lengths`; every place comes exactly once.
    """
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    start = 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        rows = min(max(token_budget // longest, 1), max_rows)
        yield order[start : start + rows]
        start += rows
