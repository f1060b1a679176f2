"""Switch: each token goes to one expert, and an expert takes a bounded number of tokens."""

from __future__ import annotations

import torch

from moe.routing.gate import Gate
from moe.routing.router import Router, Routing, Tokens, capacity_of, require_capacity_factor
from moe.routing.sparse_mixer import SparseMixer
from runtime.activations import SparseActivations
from runtime.errors import UsageError
from runtime.regularizers import load_balance, z_loss
from runtime.select import TopK


class SwitchRouter(Router):
    """The likeliest expert of ``softmax(W x)``, weighted by its probability (Fedus et al. 2021).

    Attributes:
        capacity_factor: an expert takes ``⌈factor · tokens / experts⌉`` tokens, the first ones; None drops none.
        jitter: ε; in training, hidden states are multiplied by noise from U(1 - ε, 1 + ε) on their way to the
            logits, never in evaluation.
        sampler: a `SparseMixer`, when `sparse_mixer` is given: in training, the expert is drawn.
    """

    def __init__(
        self,
        width: int,
        num_experts: int,
        *,
        capacity_factor: float | None = 1.25,
        jitter: float = 0.01,
        sparse_mixer: float | None = None,
    ) -> None:
        super().__init__(num_experts, width)
        if not 0 <= jitter < 1:
            raise UsageError(f"jitter is {jitter}, but must be 0 or more and below 1")
        self.capacity_factor = require_capacity_factor(capacity_factor)
        self.jitter = jitter
        self.gate = Gate(width, num_experts)
        self.sampler = None if sparse_mixer is None else SparseMixer(sparse_mixer)

    def route(self, tokens: Tokens) -> Routing:
        hidden = tokens.hidden.float()
        if self.training and self.jitter:
            hidden = hidden * torch.empty_like(hidden).uniform_(1 - self.jitter, 1 + self.jitter)
        logits = self.gate(hidden)
        scores = logits.softmax(1)
        if self.sampler is None:
            units = TopK(1)(logits.detach()).units.reshape(-1, 1)
            weights = scores.gather(1, units.long())
        else:
            units, weights = self.sampler(logits)
        gates = SparseActivations.from_topk(units, weights, self.num_experts)
        losses = {"load_balance": load_balance(gates, scores), "z": z_loss(logits)}
        return Routing(gates, scores, losses, capacity_of(self.capacity_factor, gates.nnz, self.num_experts))
