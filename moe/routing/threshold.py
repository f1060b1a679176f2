"""Threshold: each token goes to as many experts as it takes to gather enough probability."""

from __future__ import annotations

from moe.routing.gate import Gate
from moe.routing.router import Router, Routing, Tokens
from runtime.activations import SparseActivations
from runtime.errors import UsageError
from runtime.kernels.registry import kernel
from runtime.regularizers import load_balance, z_loss
from runtime.select import TopP


class ThresholdRouter(Router):
    """The fewest likeliest experts whose probabilities add up to `threshold` (Yang et al. 2024, XMoE).

    Weights are the probabilities of ``softmax(W x)``. With a threshold near 0 this is top-1, with 1 it is all
    experts.

    Attributes:
        threshold: t, in (0, 1].
        renormalise: whether the weights of a token are made to add up to 1.
    """

    def __init__(
        self, width: int, num_experts: int, *, threshold: float = 0.9, renormalise: bool = False
    ) -> None:
        super().__init__(num_experts, width)
        if not 0 < threshold <= 1:
            raise UsageError(f"the threshold is {threshold}, but must be above 0 and up to 1")
        self.threshold = threshold
        self.renormalise = renormalise
        self.gate = Gate(width, num_experts)

    def route(self, tokens: Tokens) -> Routing:
        logits = self.gate(tokens.hidden)
        scores = logits.softmax(1)
        gates = TopP(self.threshold)(scores)
        losses = {"load_balance": load_balance(gates, scores), "z": z_loss(logits)}
        return Routing(rows_adding_up_to_1(gates) if self.renormalise else gates, scores, losses)


def rows_adding_up_to_1(gates: SparseActivations) -> SparseActivations:
    """`gates` with each row divided by its sum, where rows are of different lengths."""
    rows = kernel("rows_of_nonzeros", gates.indptr, gates.units)(gates.indptr, gates.units).long()
    sums = gates.weights.new_zeros(gates.num_rows).index_add(0, rows, gates.weights)
    return SparseActivations(gates.indptr, gates.units, gates.weights / sums[rows], gates.num_units)
