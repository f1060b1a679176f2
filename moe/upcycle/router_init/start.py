"""Routers of an upcycling, by the name of how they start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from moe.upcycle.methods.method import generator
from moe.upcycle.plan import RouterName, UpcyclePlan
from moe.upcycle.router_init.clusters import cluster_rows
from moe.upcycle.router_init.hidden_means import hidden_means_rows
from moe.upcycle.router_init.random import random_rows

FROM_TEXT: tuple[RouterName, ...] = ("hidden-means", "clusters")
"""Those that start from hidden states of a sample text."""

RouterRows = Callable[[int, int, int], Tensor]
"""``(layer, rows, width)`` to the initial rows of a router, float32 ``[rows, width]``."""


def router_start(plan: UpcyclePlan, hidden: Mapping[int, Sequence[Tensor]]) -> RouterRows:
    """The initial rows that a plan asks for.

    Args:
        hidden: of each layer the hidden states of each text, for those that start from text.
    """

    def rows(layer: int, num_rows: int, width: int) -> Tensor:
        match plan.starting_router:
            case "random":
                return random_rows(num_rows, width, generator(plan.seed, layer, 0))
            case "hidden-means":
                return hidden_means_rows(hidden[layer], num_rows)
            case "clusters":
                return cluster_rows(hidden[layer], num_rows, plan.seed)
            case "gates":  # the method makes them of its neurons
                return torch.empty(0, width)

    return rows
