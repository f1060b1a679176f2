"""Per sequence: all tokens of a sequence go to the same experts."""

from __future__ import annotations

import torch
from torch import Tensor

from moe.routing.gate import Gate
from moe.routing.router import Router, Routing, Tokens, of_tokens, renormalised, require_top_k
from runtime.activations import SparseActivations
from runtime.errors import UsageError
from runtime.regularizers import load_balance, z_loss
from runtime.select import TopK

UNKNOWN_CLASS = -100


class PerSequenceRouter(Router):
    """Top-k of ``softmax(W · mean of the sequence)``, once a sequence (Daxberger et al. 2023, Mobile V-MoE).

    So few weights are read for a sequence. Where `Tokens.classes` gives the super-class of the sequences, the
    loss ``"super_class"`` is the cross-entropy between router and class, which leads each class to the expert
    of its number. The mean takes in all tokens, later ones included: not for decoders.

    Losses count sequences, not tokens.

    Attributes:
        top_k: k.
        renormalise: whether the k weights are made to add up to 1.
    """

    is_causal = False
    looks_ahead = "decides by the mean over the whole sequence"

    def __init__(self, width: int, num_experts: int, *, top_k: int = 1, renormalise: bool = False) -> None:
        super().__init__(num_experts, width)
        self.top_k = require_top_k(top_k, num_experts)
        self.renormalise = renormalise
        self.gate = Gate(width, num_experts)

    def route(self, tokens: Tokens) -> Routing:
        # Numbered from 0 without gaps, so that every sequence has a mean.
        sequences = of_tokens(tokens, "sequences", "per-sequence routing").unique(return_inverse=True)[1]
        logits = self.gate(mean_of_sequences(tokens.hidden, sequences))
        scores = logits.softmax(1)
        units = TopK(self.top_k)(logits.detach()).units.reshape(-1, self.top_k)
        weights = scores.gather(1, units.long())
        weights = renormalised(weights) if self.renormalise else weights
        gates = SparseActivations.from_topk(units, weights, self.num_experts)
        losses = {"load_balance": load_balance(gates, scores), "z": z_loss(logits)}
        if tokens.classes is not None:
            losses["super_class"] = self._super_class(tokens, sequences, logits)
        return Routing(
            SparseActivations.from_topk(units[sequences], weights[sequences], self.num_experts),
            scores[sequences],
            losses,
        )

    def _super_class(self, tokens: Tokens, sequences: Tensor, logits: Tensor) -> Tensor:
        per_token = of_tokens(tokens, "classes", "the super-class loss")
        classes = per_token.new_full((len(logits),), UNKNOWN_CLASS).scatter(0, sequences, per_token)
        if not bool((classes[sequences] == per_token).all()):
            raise UsageError(
                "Tokens.classes differs between tokens of one sequence; give each sequence one class"
            )
        known = classes != UNKNOWN_CLASS
        named = classes[known]
        if not len(named):
            return logits.sum() * 0.0  # the mean over nothing is not a number
        if not 0 <= int(named.min()) <= int(named.max()) < self.num_experts:
            raise UsageError(
                f"super-classes run from {int(named.min())} to {int(named.max())}, but each needs an expert of "
                f"its own, and there are {self.num_experts}"
            )
        return torch.nn.functional.cross_entropy(logits[known], named)


def mean_of_sequences(hidden: Tensor, sequences: Tensor) -> Tensor:
    """float32 ``[sequences, width]``; added in float64, so that the order of the tokens does not show.

    Args:
        hidden: ``[tokens, width]``.
        sequences: int64 ``[tokens]``, from 0 without gaps.
    """
    lengths = torch.bincount(sequences)
    sums = torch.zeros(len(lengths), hidden.shape[1], dtype=torch.float64, device=hidden.device)
    return (sums.index_add(0, sequences, hidden.double()) / lengths[:, None]).float()
