"""Granular: small experts, each a slice of the block, in virtual groups (He et al. 2024, "Upcycling LLMs into MoE")."""

from __future__ import annotations

import torch
from torch import Tensor

from moe.upcycle.methods.method import (
    Block,
    Method,
    scale_output,
    scaling_is_exact,
    slice_width,
    take_neurons,
)
from moe.upcycle.plan import UpcyclePlan
from runtime.errors import UsageError


class GranularMethod(Method):
    """Expert i is slice ``i mod G`` of the block; each run of G experts, a virtual group, is the whole block.

    The router has the same row for the experts of a group, so that a token is sent to whole groups when top-k is
    a multiple of G. The gates of a group's experts are then equal and a G-th of the group's, which a factor G in
    the down projection makes up for. Exact when whole groups are selected.
    """

    def __init__(self, plan: UpcyclePlan) -> None:
        super().__init__(plan)
        if plan.experts % plan.granularity:
            raise UsageError(
                f"{plan.experts} experts do not divide into groups of {plan.granularity} slices; choose a number "
                f"of experts that is a multiple of the granularity, such as "
                f"{-(-plan.experts // plan.granularity) * plan.granularity}"
            )

    def expert_width(self, inner: int) -> int:
        return slice_width(inner, self.plan.granularity, "a granularity")

    def expert(self, block: Block, layer: int, expert: int) -> Block:  # noqa: ARG002 - alike in every layer
        width = self.expert_width(block["up"].shape[0])
        start = expert % self.plan.granularity * width
        return scale_output(take_neurons(block, slice(start, start + width)), self.plan.granularity)

    @property
    def router_rows(self) -> int:
        return self.plan.experts // self.plan.granularity

    def router(self, rows: Tensor) -> Tensor:
        return rows.repeat_interleave(self.plan.granularity, 0)

    def is_exact(self, dtype: torch.dtype) -> bool:
        whole_groups = self.plan.top_k % self.plan.granularity == 0
        return whole_groups and scaling_is_exact(self.plan.granularity, dtype)
