"""Drop: copies of which a share of the neurons is drawn anew (Nakamura et al. 2025, "Drop-Upcycling")."""

from __future__ import annotations

import torch

from moe.upcycle.methods.method import INNER_AXIS, Block, Method, generator


class DropMethod(Method):
    """The dense block with a share of its neurons re-drawn, other ones in each expert.

    A neuron is the same row of gate and up and the same column of down, and all three are drawn anew:
    ``N(mean, std²)`` of the values of that projection that they replace.
    """

    def expert(self, block: Block, layer: int, expert: int) -> Block:
        inner = block["up"].shape[0]
        count = round(self.plan.drop * inner)
        if count == 0:
            return block
        draw = generator(self.plan.seed, layer, 1 + expert)
        neurons = torch.randperm(inner, generator=draw)[:count]
        dropped = dict(block)
        for name, axis in INNER_AXIS.items():
            if name in block:
                old = block[name].index_select(axis, neurons).float()
                new = torch.randn(old.shape, generator=draw) * old.std(correction=0) + old.mean()
                dropped[name] = block[name].index_copy(axis, neurons, new.to(block[name].dtype))
        return dropped

    def is_exact(self, dtype: torch.dtype) -> bool:  # noqa: ARG002 - in every one
        return self.plan.drop == 0
