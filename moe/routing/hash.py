"""Hash: the expert of a token is looked up by its vocabulary id."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch
from torch import Tensor

from moe.routing.router import Router, Routing, Tokens, of_tokens
from moe.seed import require_seed
from runtime.activations import SparseActivations
from runtime.errors import UsageError
from runtime.regularizers import load_balance


class HashRouter(Router):
    """A fixed table from vocabulary id to expert; nothing is learned (Roller et al. 2021).

    Without `frequencies` the vocabulary is shuffled by `seed` and dealt out, so that experts have equally many
    ids; with them, ids are dealt out from the most frequent one on, each to the expert with the least text so
    far. Weights are 1.

    Attributes:
        table: int32 ``[vocabulary_size]``, saved with the model.
    """

    table: Tensor

    def __init__(
        self,
        width: int,
        num_experts: int,
        *,
        vocabulary_size: int,
        seed: int = 0,
        frequencies: Sequence[float] | None = None,
    ) -> None:
        super().__init__(num_experts, width)
        if vocabulary_size < 1:
            raise UsageError(f"the vocabulary has {vocabulary_size} ids, but hash routing needs 1 or more")
        require_seed(seed)
        generator = torch.Generator(device="cpu").manual_seed(seed)
        order = torch.randperm(vocabulary_size, generator=generator, device="cpu")
        if frequencies is None:
            table = torch.empty(vocabulary_size, dtype=torch.int32, device="cpu")
            table[order] = (torch.arange(vocabulary_size, device="cpu") % num_experts).int()
        else:
            table = _even_table(order.tolist(), list(frequencies), num_experts)
        self.register_buffer("table", table)

    def route(self, tokens: Tokens) -> Routing:
        ids = of_tokens(tokens, "ids", "hash routing")
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(self.table):
            raise UsageError(
                f"ids run from {int(ids.min())} to {int(ids.max())}, but the table has {len(self.table)}"
            )
        units = self.table[ids][:, None]
        gates = SparseActivations.from_topk(
            units, torch.ones(units.shape, device=units.device), self.num_experts
        )
        scores = torch.zeros(len(units), self.num_experts, device=units.device).scatter(1, units.long(), 1.0)
        return Routing(gates, scores, {"load_balance": load_balance(gates, scores)})


def _even_table(order: list[int], frequencies: list[float], num_experts: int) -> Tensor:
    if len(frequencies) != len(order):
        raise UsageError(f"there are {len(frequencies)} frequencies for a vocabulary of {len(order)}")
    if not all(0 <= frequency < float("inf") for frequency in frequencies):
        raise UsageError("frequencies of vocabulary ids must be 0 or more, and finite")
    table = torch.empty(len(order), dtype=torch.int32, device="cpu")
    # Text first, then ids, so that ids that never occur are dealt out evenly too.
    lightest = [(0.0, 0, expert) for expert in range(num_experts)]
    for token_id in sorted(order, key=lambda token_id: -frequencies[token_id]):
        text, ids, expert = lightest[0]
        table[token_id] = expert
        heapq.heapreplace(lightest, (text + frequencies[token_id], ids + 1, expert))
    return table
