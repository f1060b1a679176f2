"""Linear layers in bfloat16 on processors that do not multiply it, several times faster than torch's.

Without AVX-512, torch's product of a few tokens with a matrix in bfloat16 takes up to ten times as long as in
float32. The kernels that experts run on widen the weights in the cache instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from runtime.combine import grouped_matmul

WORTHWHILE = 1 << 23
"""Weights of a matrix from which one token alone gains; the call costs as long as reading a small one."""


class Bfloat16Linear(nn.Linear):
    """`torch.nn.Linear` for inference on the CPU; anything else is left to torch."""

    def forward(self, input: Tensor) -> Tensor:
        tokens = input.numel() // self.in_features
        few = tokens < 2 and self.weight.numel() < WORTHWHILE
        needs_gradient = torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad)
        ours = {input.device.type, self.weight.device.type} == {"cpu"}
        ours &= {input.dtype, self.weight.dtype} == {torch.bfloat16}
        if few or needs_gradient or not ours or not tokens or torch.compiler.is_compiling():
            return super().forward(input)
        flat = input.reshape(tokens, self.in_features)
        product: Tensor = grouped_matmul(flat, torch.tensor([0, tokens]), self.weight.T[None])
        product = product if self.bias is None else product + self.bias
        return product.reshape(*input.shape[:-1], self.out_features)


def use_bfloat16_linear(model: Any) -> int:
    """Let the linear layers of a model compute so where it is faster; parameters and their names stay.

    Returns:
        How many layers do; 0 on processors with AVX-512, on a GPU, and in other dtypes.
    """
    if torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2"):
        return 0
    layers = [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and module.weight.dtype == torch.bfloat16
        and module.weight.device.type == "cpu"
    ]
    for layer in layers:
        layer.__class__ = Bfloat16Linear
    return len(layers)
