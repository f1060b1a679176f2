"""Split: a dense block cut into small experts for sparse inference, without training (Yang et al. 2024, "XMoE")."""

from __future__ import annotations

import torch
from torch import Tensor

from moe.upcycle.balanced_clusters import balanced_clusters
from moe.upcycle.methods.method import (
    Block,
    Method,
    generator,
    scale_output,
    scaling_is_exact,
    slice_width,
    take_neurons,
)

ROUTER_SCALE = 1e-3
"""Largest length of a router row, times the square root of the width. Gates must hardly differ, because a neuron
of the dense block counts fully or not at all; but they must differ by far more than float32's rounding (1e-7),
or the choice of experts would be rounding's."""


class SplitMethod(Method):
    """Expert i holds an E-th of the neurons; a token gets those of the k experts that its router picks.

    Gates that hardly differ are 1/k, which a factor k in the down projection makes up for: the sum over the
    selected experts is the dense block without the neurons of all others. Selecting all of them is exact, and
    the router is zero then, so that gates are equal.

    Neurons are grouped by balanced clusters of their gate rows, so that those that light up together are together.
    """

    def expert_width(self, inner: int) -> int:
        return slice_width(inner, self.plan.experts, "a number of experts")

    def arrange(self, block: Block, layer: int) -> Block:
        self.expert_width(block["up"].shape[0])
        if self.plan.split_by == "contiguous" or self.plan.experts == 1:
            return block
        rows = block["gate" if "gate" in block else "up"].float()
        draw = generator(self.plan.seed, layer, 1)
        clusters = balanced_clusters(
            torch.nn.functional.normalize(rows, dim=1).numpy(), self.plan.experts, draw.initial_seed()
        )
        return take_neurons(block, torch.from_numpy(clusters).argsort(stable=True))

    def expert(self, block: Block, layer: int, expert: int) -> Block:  # noqa: ARG002 - it has been arranged
        width = self.expert_width(block["up"].shape[0])
        part = take_neurons(block, slice(expert * width, (expert + 1) * width))
        return scale_output(part, self.plan.top_k)

    def router(self, rows: Tensor) -> Tensor:
        if self.plan.top_k == self.plan.experts:
            return torch.zeros_like(rows)
        longest = rows.norm(dim=1).max().clamp_min(torch.finfo(torch.float32).tiny)
        return rows * (ROUTER_SCALE / (longest * rows.shape[1] ** 0.5))

    def is_exact(self, dtype: torch.dtype) -> bool:
        return self.plan.top_k == self.plan.experts and scaling_is_exact(self.plan.top_k, dtype)
