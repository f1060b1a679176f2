"""A router for a split block, without any text: the mean gates of each expert's neurons."""

from __future__ import annotations

from torch import Tensor

from moe.upcycle.methods.method import Block


def gate_rows(block: Block, num_experts: int) -> Tensor:
    """Rows of a router whose logits are the mean pre-activations of each expert, float32 ``[experts, width]``.

    Args:
        block: its neurons in the order of the experts, as many for each.
    """
    gates = block["gate" if "gate" in block else "up"].float()
    return gates.reshape(num_experts, -1, gates.shape[1]).mean(1)
