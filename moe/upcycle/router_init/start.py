"""Routers of an upcycling, by the name of how they start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from moe.upcycle.methods.method import Block, generator
from moe.upcycle.plan import RouterName, UpcyclePlan
from moe.upcycle.router_init.clusters import cluster_rows
from moe.upcycle.router_init.contributions import Activation, contribution_rows
from moe.upcycle.router_init.gates import gate_rows
from moe.upcycle.router_init.hidden_means import hidden_means_rows
from moe.upcycle.router_init.random import random_rows

FROM_TEXT: tuple[RouterName, ...] = ("hidden-means", "clusters", "contributions")
"""Those that start from hidden states of a sample text."""

RouterRows = Callable[[int, int, Block], Tensor]
"""``(layer, rows, block)`` to the initial rows of a router, float32 ``[rows, width]``; the block is the dense one
with its neurons in the order of the experts."""


def router_start(
    plan: UpcyclePlan, hidden: Mapping[int, Sequence[Tensor]], activation: Activation
) -> RouterRows:
    """The initial rows that a plan asks for.

    Args:
        hidden: of each layer the hidden states of each text, for those that start from text.
        activation: of the feed-forward blocks.
    """

    def rows(layer: int, num_rows: int, block: Block) -> Tensor:
        match plan.starting_router:
            case "random":
                return random_rows(num_rows, block["up"].shape[1], generator(plan.seed, layer, 0))
            case "hidden-means":
                return hidden_means_rows(hidden[layer], num_rows)
            case "clusters":
                return cluster_rows(hidden[layer], num_rows, plan.seed)
            case "gates":
                return gate_rows(block, num_rows)
            case "contributions":
                return contribution_rows(hidden[layer], block, num_rows, activation)

    return rows
