"""Expert choice: each expert takes its best tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from moe.routing.gate import Gate
from moe.routing.router import Router, Routing, Tokens, capacity_of, of_tokens, require_capacity_factor
from runtime.activations import SparseActivations
from runtime.errors import InputError, UsageError
from runtime.regularizers import z_loss
from runtime.select import TopK


class ExpertChoiceRouter(Router):
    """The ``C = ⌈c · tokens / experts⌉`` tokens to which an expert is likeliest (Zhou et al. 2022).

    Probabilities are softmax over the experts of each token, and are the weights; of equal ones the lower token
    is taken. Every expert has exactly C tokens (all of them where there are fewer), while a token may have any
    number of experts, none included; so there is no load to balance. It compares tokens with one another, later
    ones included, and has no place in a decoder.

    Attributes:
        capacity_factor: c, the mean number of experts of a token.
        per_sequence: whether experts choose within each sequence, C of its tokens each, so that what becomes of a
            sequence does not depend on what else is in the batch. Needs `Tokens.sequences`.
    """

    is_causal = False
    looks_ahead = "lets each expert choose among all tokens of the batch"

    def __init__(
        self, width: int, num_experts: int, *, capacity_factor: float = 1.0, per_sequence: bool = False
    ) -> None:
        super().__init__(num_experts, width)
        if require_capacity_factor(capacity_factor) is None:
            raise UsageError("expert choice needs a capacity factor, the mean number of experts of a token")
        self.capacity_factor = capacity_factor
        self.per_sequence = per_sequence
        self.gate = Gate(width, num_experts)

    def route(self, tokens: Tokens) -> Routing:
        logits = self.gate(tokens.hidden)
        scores = logits.softmax(1)
        _require_numbers(scores)
        if self.per_sequence:
            sequences = of_tokens(tokens, "sequences", "expert choice per sequence")
            best = best_of_each_sequence(scores.detach(), sequences, self.capacity_factor)
            gates = SparseActivations.from_mask(scores, best)
            return Routing(gates, scores, {"z": z_loss(logits)}, int(best[:, 0].sum()))
        capacity = capacity_of(self.capacity_factor, len(scores), self.num_experts)
        # Without tokens there is nothing to choose from, and a capacity of 0 is no top-k.
        chosen = TopK(max(capacity or 0, 1))(scores.T.contiguous())
        return Routing(chosen.transpose(), scores, {"z": z_loss(logits)}, capacity)


def best_of_each_sequence(scores: Tensor, sequences: Tensor, capacity_factor: float) -> Tensor:
    """Of each sequence, the ``⌈c · its tokens / experts⌉`` tokens with the highest score for each expert.

    Args:
        scores: ``[tokens, experts]``; of equal ones the lower token is taken.
        sequences: int64 ``[tokens]``, ascending.

    Returns:
        boolean ``[tokens, experts]``.

    Raises:
        UsageError: a sequence comes after a later one, so that its tokens may stand apart.
    """
    if bool((sequences.diff() < 0).any()):
        raise UsageError(
            "Tokens.sequences is not ascending, but expert choice per sequence takes the tokens of a sequence from "
            "one run; sort the tokens by their sequence"
        )
    _, number, length = sequences.unique_consecutive(return_inverse=True, return_counts=True)
    capacity = (capacity_factor * length.double() / scores.shape[1] - 1e-9).ceil()  # as in `capacity_of`
    # By sequence, and within it by score: a stable sort by the one of what is sorted by the other.
    by_score = scores.argsort(dim=0, descending=True, stable=True)
    ranked = by_score.gather(0, number[by_score].argsort(dim=0, stable=True))
    start = length.cumsum(0) - length
    rank = torch.arange(len(scores), device=scores.device) - start[number]
    chosen = (rank < capacity[number])[:, None].expand(scores.shape)
    return torch.zeros_like(chosen).scatter(0, ranked, chosen)


def _require_numbers(scores: Tensor) -> None:
    """Refuse NaN here, where rows are tokens; a selection by expert would name the expert.

    Raises:
        InputError: the scores of a token are NaN.
    """
    rows = scores.detach().isnan().any(1)
    if bool(rows.any()):
        raise InputError(
            f"the scores of token {int(rows.nonzero()[0])} are NaN, so that no expert can choose; check the hidden "
            "states and weights"
        )
