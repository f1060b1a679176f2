"""The matrix that turns hidden states into one logit per expert."""

from __future__ import annotations

import torch
from torch import Tensor

INITIAL_STD = 0.02
"""Of the weights (Komatsuzaki et al. 2022, Sparse Upcycling)."""


class Gate(torch.nn.Module):
    """``W x``, or ``W x + b``, in float32 whatever the dtypes of `x`, `W` and `b`.

    Attributes:
        weight: ``[units, width]``, drawn from N(0, 0.02).
        bias: ``[units]``, zeros at first; None without one.
    """

    def __init__(self, width: int, num_units: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(num_units, width))
        self.bias = torch.nn.Parameter(torch.zeros(num_units)) if bias else None
        torch.nn.init.normal_(self.weight, std=INITIAL_STD)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[rows, width]`` to float32 logits ``[rows, units]``."""
        bias = None if self.bias is None else self.bias.float()
        return torch.nn.functional.linear(hidden.float(), self.weight.float(), bias)
