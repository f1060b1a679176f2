"""Switch and mixture (SAM): one group of experts for each token, and the best experts inside it."""

from __future__ import annotations

import torch
from torch import Tensor

from moe.routing.gate import Gate
from moe.routing.router import Router, Routing, Tokens, renormalised, require_top_k
from runtime.activations import SparseActivations
from runtime.errors import UsageError
from runtime.regularizers import load_balance, z_loss
from runtime.select import TopK


class SwitchAndMixtureRouter(Router):
    """The likeliest group, then its `top_k` likeliest experts (Jiang et al. 2021).

    A group is the experts of one device, in order, so that a token is sent to one device however large k is.
    The weight of an expert is ``softmax(V x)_group · softmax(W x within the group)_expert``.

    Losses beside the load balance of the experts: ``"group_balance"``, that of the groups; and ``"alignment"``,
    how much more likely experts of other groups are than the least likely chosen one, by the softmax over all
    experts: 0 where the best group holds the best experts.

    Attributes:
        num_groups: divides the number of experts.
        top_k: k, at most the experts of a group.
        renormalise: whether the k weights are made to add up to 1.
    """

    def __init__(
        self, width: int, num_experts: int, *, num_groups: int, top_k: int = 2, renormalise: bool = False
    ) -> None:
        super().__init__(num_experts, width)
        if num_groups < 1 or num_experts % num_groups:
            raise UsageError(f"{num_experts} experts cannot be parted into {num_groups} groups of equal size")
        self.num_groups = num_groups
        self.top_k = require_top_k(top_k, num_experts // num_groups)
        self.renormalise = renormalise
        self.group_gate = Gate(width, num_groups)
        self.gate = Gate(width, num_experts)

    def route(self, tokens: Tokens) -> Routing:
        group_logits, logits = self.group_gate(tokens.hidden), self.gate(tokens.hidden)
        group_scores = group_logits.softmax(1)
        size = self.num_experts // self.num_groups
        inside = logits.unflatten(1, (self.num_groups, size))
        scores = (group_scores[:, :, None] * inside.softmax(2)).flatten(1)

        group = TopK(1)(group_logits.detach()).units.long()
        best = TopK(self.top_k)(inside.detach()[torch.arange(len(group), device=group.device), group])
        units = best.units.reshape(-1, self.top_k) + group[:, None].int() * size
        weights = scores.gather(1, units.long())
        weights = renormalised(weights) if self.renormalise else weights

        gates = SparseActivations.from_topk(units, weights, self.num_experts)
        groups = SparseActivations.from_topk(
            group[:, None].int(), torch.ones_like(group_scores[:, :1]), self.num_groups
        )
        losses = {
            "load_balance": load_balance(gates, scores),
            "group_balance": load_balance(groups, group_scores),
            "alignment": alignment(logits.softmax(1), units.long(), group, size),
            "z": z_loss(logits) + z_loss(group_logits),
        }
        return Routing(gates, scores, losses)


def alignment(probabilities: Tensor, units: Tensor, group: Tensor, size: int) -> Tensor:
    """Mean over tokens of ``Σ_e max(0, p_e - the smallest p of the chosen)``, over experts of other groups.

    Args:
        probabilities: ``[tokens, experts]``.
        units: int64 ``[tokens, k]``, the chosen experts.
        group: int64 ``[tokens]``, their group.
        size: experts per group.
    """
    least = probabilities.gather(1, units).amin(1, keepdim=True)
    elsewhere = torch.arange(probabilities.shape[1], device=group.device) // size != group[:, None]
    return ((probabilities - least).clamp(min=0) * elsewhere).sum() / max(len(probabilities), 1)
