"""Expert choice: each expert takes its best tokens."""

from __future__ import annotations

from moe.routing.gate import Gate
from moe.routing.router import Router, Routing, Tokens, capacity_of, require_capacity_factor
from runtime.errors import UsageError
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
    """

    is_causal = False
    looks_ahead = "lets each expert choose among all tokens of the batch"

    def __init__(self, width: int, num_experts: int, *, capacity_factor: float = 1.0) -> None:
        super().__init__(num_experts, width)
        if require_capacity_factor(capacity_factor) is None:
            raise UsageError("expert choice needs a capacity factor, the mean number of experts of a token")
        self.capacity_factor = capacity_factor
        self.gate = Gate(width, num_experts)

    def route(self, tokens: Tokens) -> Routing:
        logits = self.gate(tokens.hidden)
        scores = logits.softmax(1)
        capacity = capacity_of(self.capacity_factor, len(scores), self.num_experts)
        # Without tokens there is nothing to choose from, and a capacity of 0 is no top-k.
        chosen = TopK(max(capacity or 0, 1))(scores.T.contiguous())
        return Routing(chosen.transpose(), scores, {"z": z_loss(logits)}, capacity)
