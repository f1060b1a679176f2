"""A router for a split block that predicts, from a sample text, how much each expert contributes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from moe.upcycle.methods.method import Block

RIDGE = 1e-2
"""Weight of the penalty, as a share of the mean squared hidden state: it keeps a short text from being learnt by
heart."""

Activation = Callable[[Tensor], Tensor]


def contribution_rows(
    texts: Sequence[Tensor], block: Block, num_experts: int, activation: Activation
) -> Tensor:
    """Rows of a router, float32 ``[experts, width]``: a ridge regression of contributions on hidden states.

    A neuron contributes ``|activation| · ‖its column of the down projection‖`` to a token, an expert the sum over
    its neurons. Only how experts differ on a token matters, so their mean is taken away first.

    Args:
        texts: of each text its hidden states before the feed-forward block, float32 ``[tokens, width]``.
        block: its neurons in the order of the experts, as many for each.
        activation: of the block.
    """
    hidden = torch.cat(list(texts))
    parts = {name: part.float() for name, part in block.items()}
    neurons = linear(hidden, parts["up"], parts.get("up_bias"))
    if "gate" in parts:
        neurons = activation(linear(hidden, parts["gate"], parts.get("gate_bias"))) * neurons
    else:
        neurons = activation(neurons)
    sizes = neurons.abs() * parts["down"].norm(dim=0)
    experts = sizes.reshape(len(hidden), num_experts, -1).sum(2)
    differences = experts - experts.mean(1, keepdim=True)
    penalty = RIDGE * float(hidden.square().mean()) * len(hidden) + torch.finfo(torch.float32).tiny
    normal = hidden.T @ hidden + penalty * torch.eye(hidden.shape[1])
    return torch.linalg.lstsq(normal.double(), (hidden.T @ differences).double()).solution.T.float()
