"""Token choice: each token goes to its k best experts."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from moe.routing.balance import BiasBalance
from moe.routing.gate import Gate
from moe.routing.router import (
    Router,
    Routing,
    Tokens,
    capacity_of,
    renormalised,
    require_capacity_factor,
    require_top_k,
)
from moe.routing.sparse_mixer import SparseMixer
from runtime.activations import SparseActivations
from runtime.errors import UsageError
from runtime.regularizers import load_balance, z_loss
from runtime.select import TopK

Scoring = Literal["softmax", "softmax_of_selected", "sigmoid"]


class TopKRouter(Router):
    """The `top_k` highest logits of ``W x``; of equal ones the lower expert (Shazeer et al. 2017).

    Attributes:
        top_k: k.
        scoring: the weights: the softmax over all experts (``"softmax"``, OLMoE and Qwen), over the k chosen
            ones (``"softmax_of_selected"``, Mixtral), or each expert's own sigmoid (``"sigmoid"``, DeepSeek-V3).
        renormalise: whether the k weights are made to add up to 1. They must for a layer whose experts are
            copies of one block to equal that block.
        capacity_factor: an expert takes ``⌈factor · k · tokens / experts⌉`` entries; None drops nothing.
        balance: a `BiasBalance`, when `balance_rate` is given: the selection is by score plus bias.
        sampler: a `SparseMixer`, when `sparse_mixer` is given: in training, experts are drawn, and the weights
            are the probabilities of the draws.
    """

    def __init__(
        self,
        width: int,
        num_experts: int,
        *,
        top_k: int = 2,
        scoring: Scoring = "softmax",
        renormalise: bool = True,
        capacity_factor: float | None = None,
        balance_rate: float | None = None,
        sparse_mixer: float | None = None,
    ) -> None:
        super().__init__(num_experts, width)
        if scoring not in get_args(Scoring):
            raise UsageError(f"there is no scoring {scoring!r}; there are {', '.join(get_args(Scoring))}")
        if scoring == "softmax_of_selected" and not renormalise:
            raise UsageError("softmax_of_selected always adds up to 1; leave renormalise on, or use softmax")
        if sparse_mixer is not None and (scoring != "softmax" or renormalise or balance_rate is not None):
            raise UsageError(
                "sparse_mixer draws by softmax and weighs by the probability of the draw; "
                "use it with scoring softmax, renormalise off and no balance_rate"
            )
        self.top_k = require_top_k(top_k, num_experts)
        self.scoring = scoring
        self.renormalise = renormalise
        self.capacity_factor = require_capacity_factor(capacity_factor)
        self.gate = Gate(width, num_experts)
        self.balance = None if balance_rate is None else BiasBalance(num_experts, balance_rate)
        self.sampler = None if sparse_mixer is None else SparseMixer(sparse_mixer)

    def route(self, tokens: Tokens) -> Routing:
        logits = self.gate(tokens.hidden)
        scores = logits.sigmoid() if self.scoring == "sigmoid" else logits.softmax(1)
        if self.sampler is None:
            # By logit where there is no bias: two logits that differ may have one and the same probability.
            selected = TopK(self.top_k)(logits.detach() if self.balance is None else self.balance(scores))
            units = selected.units.reshape(-1, self.top_k)
            weights = self._weights(logits, scores, units)
        else:
            units, weights = self.sampler(logits, self.top_k)
        gates = SparseActivations.from_topk(units, weights, self.num_experts)
        if self.balance is not None and self.training:
            self.balance.observe(gates)
        probabilities = renormalised(scores) if self.scoring == "sigmoid" else scores
        losses = {"load_balance": load_balance(gates, probabilities), "z": z_loss(logits)}
        return Routing(gates, scores, losses, capacity_of(self.capacity_factor, gates.nnz, self.num_experts))

    def _weights(self, logits: Tensor, scores: Tensor, units: Tensor) -> Tensor:
        if self.scoring == "softmax_of_selected":
            return logits.gather(1, units.long()).softmax(1)
        weights = scores.gather(1, units.long())
        return renormalised(weights) if self.renormalise else weights
