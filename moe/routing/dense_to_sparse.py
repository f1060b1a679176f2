"""Dense to sparse: all experts at first, ever fewer as the temperature falls."""

from __future__ import annotations

from torch import Tensor

from moe.routing.gate import Gate
from moe.routing.router import Router, Routing, Tokens
from moe.routing.temperature import Decay, Temperature
from runtime.activations import SparseActivations
from runtime.errors import UsageError
from runtime.regularizers import load_balance, z_loss
from runtime.select import TopK


class DenseToSparseRouter(Router):
    """``softmax((W x + b) / τ)``, of which the weights of at least `threshold` are kept (Nie et al. 2021, EvoMoE).

    At a high temperature all experts have the same weight, at a low one a token has one expert. The likeliest
    is kept in any case; of equal ones the lower.

    Attributes:
        temperature: a `Temperature`, from `start` to `end` in `steps`.
        threshold: below ``1 / num_experts``, so that even weights are all kept.
    """

    def __init__(
        self,
        width: int,
        num_experts: int,
        *,
        start: float = 2.0,
        end: float = 0.3,
        steps: int = 10_000,
        decay: Decay = "exponential",
        threshold: float = 1e-3,
    ) -> None:
        super().__init__(num_experts, width)
        self.temperature = Temperature(start, end, steps, decay)
        self.threshold = require_threshold(threshold, num_experts)
        self.gate = Gate(width, num_experts, bias=True)

    def route(self, tokens: Tokens) -> Routing:
        return kept_above(self.threshold, self.temperature(self.gate(tokens.hidden)))


def require_threshold(threshold: float, num_experts: int) -> float:
    """`threshold` itself.

    Raises:
        UsageError: it is negative, or not below ``1 / num_experts``.
    """
    if not 0 <= threshold < 1 / num_experts:
        raise UsageError(
            f"the threshold is {threshold}, but must be 0 or more and below 1/{num_experts}, the even weight of "
            f"{num_experts} experts"
        )
    return threshold


def kept_above(threshold: float, logits: Tensor) -> Routing:
    """The experts whose softmax is at least `threshold`, and the likeliest, weighted by it."""
    scores = logits.softmax(1)
    # A zero is nothing to keep: at a low temperature the softmax of most experts is exactly that.
    kept = (scores >= threshold) & (scores > 0)
    likeliest = TopK(1)(logits.detach()).units[:, None]
    gates = SparseActivations.from_mask(scores, kept.scatter(1, likeliest.long(), True))
    return Routing(gates, scores, {"load_balance": load_balance(gates, scores), "z": z_loss(logits)})
