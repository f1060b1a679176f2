"""Activation gate: dense to sparse, with an activation between the matrix and the temperature."""

from __future__ import annotations

import torch

from moe.routing.dense_to_sparse import kept_above, require_threshold
from moe.routing.gate import Gate
from moe.routing.router import Router, Routing, Tokens
from moe.routing.temperature import Decay, Temperature


class ActivationGateRouter(Router):
    """``softmax((σ(W x) + b) / τ)``, kept as by `DenseToSparseRouter` (Nguyen et al. 2024).

    With a linear router and a temperature, the two trade off against each other, and estimating either becomes
    slow; an activation σ, here the sigmoid, keeps them apart.

    Attributes:
        temperature: a `Temperature`, from `start` to `end` in `steps`.
        threshold: below ``1 / num_experts``.
        bias: b, ``[experts]``, zeros at first.
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
        self.gate = Gate(width, num_experts)
        self.bias = torch.nn.Parameter(torch.zeros(num_experts))

    def route(self, tokens: Tokens) -> Routing:
        logits = self.gate(tokens.hidden).sigmoid() + self.bias.float()
        return kept_above(self.threshold, self.temperature(logits))
