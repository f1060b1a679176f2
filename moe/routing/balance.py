"""Balance without a loss: a bias that moves the selection until all experts are equally busy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from runtime.activations import SparseActivations
from runtime.errors import UsageError
from runtime.kernels.registry import kernel


class BiasBalance(torch.nn.Module):
    """A bias per expert, added to the scores for the selection and never to the weights (Wang et al. 2024).

    The training loop calls `update` (or `update_biases` for a whole model) after each step of the optimiser;
    the bias of each expert then goes up by `rate` if it had less than its share of the tokens since the last
    update, and down if it had more. No gradient takes part.

    Attributes:
        rate: γ, above 0.
        bias: float32 ``[experts]``, saved with the model; stays float32 when the model is converted.
        load: int64 ``[experts]``, entries since the last update. Under data parallelism, add it up over the
            devices before `update`.
    """

    bias: Tensor
    load: Tensor

    def __init__(self, num_experts: int, rate: float = 1e-3) -> None:
        super().__init__()
        if not 0 < rate < float("inf"):
            raise UsageError(f"the rate of a balancing bias is {rate}, but must be above 0")
        self.rate = rate
        self.register_buffer("bias", torch.zeros(num_experts))
        self.register_buffer("load", torch.zeros(num_experts, dtype=torch.int64), persistent=False)

    def forward(self, scores: Tensor) -> Tensor:
        """What to select by: ``scores + bias``, cut off from autograd."""
        return scores.detach() + self.bias

    @torch.no_grad()
    def observe(self, gates: SparseActivations) -> None:
        """Count the experts of a batch."""
        arrays = gates.indptr, gates.units
        self.load += kernel("count_units", *arrays)(*arrays, gates.num_units)

    @torch.no_grad()
    def update(self) -> None:
        """Move the bias one `rate` towards balance, and start counting anew."""
        # Times the number of experts, so that the comparison with the mean is one of whole numbers.
        error = self.load.sum() - self.load * len(self.load)
        self.bias += self.rate * error.sign()
        self.load.zero_()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # A step of 0.001 is lost in bfloat16 as soon as the bias is above 0.25.
        exact = self.bias
        super()._apply(fn, recurse)
        self.bias = self.bias.float() if exact.is_meta else exact.to(self.bias.device)
        return self


def update_biases(model: torch.nn.Module) -> int:
    """Update every balancing bias of `model`; returns how many there are."""
    biases = [module for module in model.modules() if isinstance(module, BiasBalance)]
    for bias in biases:
        bias.update()
    return len(biases)
