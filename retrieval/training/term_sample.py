"""Which terms a step computes, where computing all would be waste.

Ranking losses need the weights of terms that some query has; nearly all others of a vocabulary take part in penalties
alone, and a sum over 30,000 terms is estimated well by a few thousand of them. So a step computes the terms that its
texts are made of, and a random sample of the others, each of which counts for as many as were left out: penalties and
numbers of active terms keep their expected values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from retrieval.encoders.token_inputs import Tokens


@dataclass(frozen=True, eq=False)
class TermSample:
    """The terms of a step.

    Attributes:
        terms: int64 ``[n]``, ascending.
        counts: float32 ``[all terms]``, how many terms each stands for: 1 for those of the texts and the fixed ones, 0
            for those that are not computed. They add up to the number of terms.
    """

    terms: Tensor
    counts: Tensor


def sample_terms(
    texts: Sequence[Tokens],
    num_terms: int,
    drawn: int,
    seed: Sequence[int],
    device: torch.device,
    fixed: Tensor | None = None,
) -> TermSample:
    """The terms of `texts` and the `fixed` ones, and `drawn` of the others, without repetition; all of them, if there
    are no more.

    Args:
        fixed: int64 ``[n]``, terms that queries may have whatever their tokens.
    """
    own = np.zeros(num_terms, bool)
    if fixed is not None:
        own[fixed.cpu().numpy()] = True
    for tokens in texts:
        for ids in tokens["input_ids"]:
            own[[unit for unit in ids if unit < num_terms]] = True
    others = np.flatnonzero(~own)
    some = np.random.default_rng(seed).permutation(others)[:drawn]
    counts = own.astype(np.float32)
    counts[some] = len(others) / max(len(some), 1)
    return TermSample(
        torch.from_numpy(np.flatnonzero(counts)).to(device), torch.from_numpy(counts).to(device)
    )
