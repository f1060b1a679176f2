"""The interface of the methods, and what they have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from moe.upcycle.plan import UpcyclePlan
from moe.upcycle.rules import PartName
from runtime.errors import UsageError

Block = Mapping[PartName, Tensor]
"""Parts of a feed-forward block; see `PartName` for their shapes."""

INNER_AXIS: dict[PartName, int] = {"gate": 0, "up": 0, "gate_bias": 0, "up_bias": 0, "down": 1}
"""The axis of each part that runs over its neurons; the bias of the output has none."""


class Method(ABC):
    """Makes experts of a feed-forward block.

    The gates of the experts that a token is sent to sum to 1, so the bias of the output stays as it is in every
    expert.
    """

    def __init__(self, plan: UpcyclePlan) -> None:
        self.plan = plan

    def expert_width(self, inner: int) -> int:
        """Neurons of an expert, of a block with `inner` of them.

        Raises:
            UsageError: the block cannot be cut as the plan says.
        """
        return inner

    def arrange(self, block: Block, layer: int) -> Block:  # noqa: ARG002 - for those that need it
        """The block with its neurons in the order that experts take them in; computed once a layer."""
        return block

    @abstractmethod
    def expert(self, block: Block, layer: int, expert: int) -> Block:
        """The parts of one expert, of an arranged block, in the block's dtype."""

    @property
    def router_rows(self) -> int:
        """Rows that the router's initialisation is asked for."""
        return self.plan.experts

    def router(self, rows: Tensor) -> Tensor:
        """The router ``[experts, width]`` from the initial rows ``[router_rows, width]``, both float32."""
        return rows

    @abstractmethod
    def is_exact(self, dtype: torch.dtype) -> bool:
        """Whether the sparse model computes what the dense one does, of weights in `dtype`."""


def take_neurons(block: Block, neurons: Tensor | slice) -> dict[PartName, Tensor]:
    """A block with only some of the neurons, in the order given."""
    return {
        name: part if name not in INNER_AXIS else part[:, neurons] if INNER_AXIS[name] == 1 else part[neurons]
        for name, part in block.items()
    }


def scale_output(block: Block, scale: float) -> dict[PartName, Tensor]:
    """A block whose neurons contribute `scale` times as much.

    The down projection takes the whole factor: a share of it in a gated block's other projections would not pass
    through the activation unchanged.
    """
    scaled = dict(block)
    scaled["down"] = scaled_weight(block["down"], scale)
    return scaled


def scaled_weight(weight: Tensor, scale: float) -> Tensor:
    """``scale · weight`` in the dtype of `weight`, rounded once; computed in float32, or in float64 of that."""
    return (weight.to(torch.promote_types(weight.dtype, torch.float32)) * scale).to(weight.dtype)


def scaling_is_exact(scale: int, dtype: torch.dtype) -> bool:
    """Whether multiplying by a whole number rounds nothing, or no more than float32 does."""
    return scale & (scale - 1) == 0 or dtype in (torch.float32, torch.float64)


def slice_width(inner: int, slices: int, option: str) -> int:
    """Neurons of one of `slices` equal slices.

    Raises:
        UsageError: they do not divide.
    """
    if inner % slices:
        divisors = [number for number in range(2, 257) if inner % number == 0]
        raise UsageError(
            f"the {inner} neurons of a feed-forward block cannot be cut into {slices} equal slices; choose {option} "
            f"from {', '.join(map(str, divisors)) or 'numbers that divide it'}"
        )
    return inner // slices


def generator(*key: int) -> torch.Generator:
    """Random numbers that depend on `key` alone (seed, layer, expert), and not on what was drawn before."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))
