"""BASE: in training, tokens are assigned so that all experts are equally busy."""

from __future__ import annotations

import torch
from torch import Tensor

from moe.routing.gate import Gate
from moe.routing.router import Router, Routing, Tokens
from runtime.activations import SparseActivations
from runtime.regularizers import z_loss
from runtime.select import TopK


class BaseRouter(Router):
    """One expert per token (Lewis et al. 2021, BASE layers).

    In training, the assignment with the highest sum of scores ``W x`` of those in which the loads of the experts
    differ by at most 1 (`balanced_assignment`), so that there is no load to balance; in evaluation, where later
    tokens must not matter, the best expert of each token, of equal ones the lower. The weight is the sigmoid of
    the score in both.
    """

    def __init__(self, width: int, num_experts: int) -> None:
        super().__init__(num_experts, width)
        self.gate = Gate(width, num_experts)

    def route(self, tokens: Tokens) -> Routing:
        logits = self.gate(tokens.hidden)
        scores = logits.sigmoid()
        units = self._balanced(logits) if self.training else TopK(1)(logits.detach()).units
        gates = SparseActivations.from_topk(
            units[:, None], scores.gather(1, units[:, None].long()), self.num_experts
        )
        return Routing(gates, scores, {"z": z_loss(logits)})

    def _balanced(self, logits: Tensor) -> Tensor:
        from moe.routing.balanced_assignment import balanced_assignment

        experts = balanced_assignment(logits.detach().cpu().numpy())
        return torch.from_numpy(experts).to(logits.device)
