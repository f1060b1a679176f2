"""A layer of experts the slow and obvious way: token by token, expert by expert."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN


class SlowExperts(nn.Module):
    """Top-k token choice with weights that add up to 1, over the parameters of a `moe.layer.MoELayer`."""

    def __init__(self, layer: Any, top_k: int) -> None:
        super().__init__()
        self.layer = layer
        self.top_k = top_k

    def forward(self, hidden: Tensor) -> Tensor:
        tokens = hidden.reshape(-1, hidden.shape[-1])
        return torch.stack([self._of_token(token) for token in tokens]).view_as(hidden)

    def _of_token(self, token: Tensor) -> Tensor:
        probabilities = (self.layer.router.gate.weight @ token).softmax(0)
        ranking = probabilities.tolist()
        chosen = sorted(range(len(ranking)), key=lambda expert: (-ranking[expert], expert))[: self.top_k]
        total = sum(probabilities[expert] for expert in chosen)
        return sum(probabilities[expert] / total * self._expert(expert, token) for expert in chosen)

    def _expert(self, expert: int, token: Tensor) -> Tensor:
        experts = self.layer.experts
        name = "gate_up_proj" if experts.gated else "up_proj"
        inner = getattr(experts, name)[expert] @ token
        if getattr(experts, f"{name}_bias") is not None:
            inner = inner + getattr(experts, f"{name}_bias")[expert]
        activation = ACT2FN[experts.activation]
        if experts.gated:
            gate, up = inner.chunk(2)
            inner = activation(gate) * up
        else:
            inner = activation(inner)
        output = experts.down_proj[expert] @ inner
        return output if experts.down_proj_bias is None else output + experts.down_proj_bias[expert]
